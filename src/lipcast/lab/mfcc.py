"""Mel-frequency cepstral coefficients of speech, as SyncNet was trained on.

Input: 16 kHz mono, in 16-bit units (-32768..32767). Output: 13 coefficients for every 10 ms. The recipe
is the one that the package python_speech_features has by default: 0.97 pre-emphasis, windows of 25 ms
without a taper, 26 triangular filters over 512 points, an orthonormal cosine transform, liftering by 22,
and the logarithm of the window's energy in place of the first coefficient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE

Curve = NDArray[np.float64]
COLUMNS_PER_S = 100
NUM_COEFFICIENTS = 13
_STEP = SAMPLE_RATE // COLUMNS_PER_S
_WINDOW = SAMPLE_RATE // 40
_POINTS = 512
_NUM_FILTERS = 26
_EMPHASIS = 0.97
_LIFTER = 22
_LEAST = np.finfo(np.float64).eps
"""Value that stands for no energy, so that it has a logarithm."""


def mfcc(sound: Curve) -> Curve:
    """Return [columns, 13]; the last window is filled up with silence. Empty for an empty sound."""
    if not len(sound):
        return np.zeros((0, NUM_COEFFICIENTS))
    emphasised = np.append(sound[0], sound[1:] - _EMPHASIS * sound[:-1])
    count = 1 + max(0, -(-(len(sound) - _WINDOW) // _STEP))
    padded = np.pad(emphasised, (0, max(0, (count - 1) * _STEP + _WINDOW - len(sound))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STEP][:count]
    power = np.abs(np.fft.rfft(windows, _POINTS)) ** 2 / _POINTS
    bands = np.log(np.maximum(power @ _filters().T, _LEAST))
    order = np.arange(NUM_COEFFICIENTS)
    found = (bands @ _cosines().T) * (1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER))
    found[:, 0] = np.log(np.maximum(power.sum(axis=1), _LEAST))
    return np.asarray(found)


def _filters() -> Curve:
    """Return [filters, points / 2 + 1]: triangles between points that are even on the mel scale."""
    mels = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), _NUM_FILTERS + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = np.floor((_POINTS + 1) * hertz / SAMPLE_RATE)
    bins = np.arange(_POINTS // 2 + 1)
    low, peak, high = (edges[i : i + _NUM_FILTERS, None] for i in range(3))
    rising = (bins >= low) & (bins < peak)
    falling = (bins >= peak) & (bins < high)
    ups, downs = (bins - low) / (peak - low), (high - bins) / (high - peak)
    return np.asarray(rising * ups + falling * downs)


def _cosines() -> Curve:
    """Return [coefficients, filters]: the orthonormal cosine transform of type 2."""
    order, band = np.arange(NUM_COEFFICIENTS)[:, None], np.arange(_NUM_FILTERS)
    scale = np.where(order == 0, np.sqrt(1 / _NUM_FILTERS), np.sqrt(2 / _NUM_FILTERS))
    return np.asarray(scale * np.cos(np.pi * order * (2 * band + 1) / (2 * _NUM_FILTERS)))
