"""Case 8, the resampled waveform: 16 kHz mono as librosa (soxr, highest quality) makes it.

The filters differ in their transition band: away from the abrupt ends by less than 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lipcast.media.audio import PcmSource

ENDS = 100
TOLERANCE, TOLERANCE_ENDS = 1e-5, 3e-4


def test_stereo_becomes_the_same_speech(golden: Callable[[str], Any]) -> None:
    case = golden("case08")
    expected = case["outputs/librosa_resampled_16k"].numpy()
    source = PcmSource(44_100, num_channels=2)
    source.push(case["inputs/stereo_44100"].numpy())
    source.finish()
    chunks = []
    while chunk := source.read():
        chunks.append(chunk.speech)
    speech = np.concatenate(chunks)
    assert speech.shape == expected.shape
    difference = np.abs(speech - expected)
    assert difference.max() < TOLERANCE_ENDS
    assert difference[ENDS:-ENDS].max() < TOLERANCE
