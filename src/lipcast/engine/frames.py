"""The output of a session: blocks of video frames, each with exactly its sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BlockTimings:
    """Seconds spent on one block, by part; in a wavefront a tick is shared by its lanes."""

    speech_s: float
    dit_s: float
    vae_s: float


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Consecutive video frames and the samples that sound while they show.

    frames: uint8 RGB [n, height, width, 3], n = 12 for every block but the last.
    audio: float32 [num_samples, num_channels] at `sample_rate`; n / 25 s of it.
    """

    index: int
    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    sample_rate: int
    timings: BlockTimings
