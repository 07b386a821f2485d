"""What is heard in each video frame of a sound: how loud, how open, how bright.

Input: mono, 16 kHz. Output: curves at 25 frames/s that do not depend on how loud the recording is. Each frame
is heard through a window of 64 ms around its middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast_train.data.movement import Curve

SAMPLES_PER_FRAME = SAMPLE_RATE // VIDEO_FPS
_WINDOW = 1024
_SILENCE_DB = -28.0
"""Below the loud parts of the sound."""


@dataclass(frozen=True, slots=True)
class Heard:
    """0 to 1 each, per frame."""

    loudness_T: Curve
    """Of the voice between 100 and 1,100 Hz; a hiss does not count."""
    openness_T: Curve
    """Of the vowel: energy around 900 Hz against that around 350 Hz."""
    frontness_T: Curve
    """Of the vowel: energy around 2,200 Hz against that around 900 Hz."""
    hiss_T: Curve
    """Energy above 3,500 Hz against the voice: s, sh, f."""


def hear(wave_N: NDArray[np.float32]) -> Heard:
    """Return what is heard in every frame of a sound; a last frame that is not whole counts."""
    power = _spectrum(wave_N)
    low, open_, middle, front, high = (
        _band(power, *edges)
        for edges in ((120, 500), (600, 1200), (600, 1600), (1700, 2800), (3500, 7600))
    )
    voice = _band(power, 100, 1100)
    loud = max(float(np.quantile(voice + high, 0.95)), 1e-7)
    level = 10 * np.log10((voice + 0.3 * high) / loud + 1e-9)
    sounding = _ramp(level, _SILENCE_DB, _SILENCE_DB + 12)
    return Heard(
        loudness_T=_smooth(_ramp(10 * np.log10(voice / loud + 1e-9), _SILENCE_DB, -2.0)),
        openness_T=_smooth(_ramp(_ratio(open_, low), -18.0, 2.0) * sounding),
        frontness_T=_smooth(0.5 + (_ramp(_ratio(front, middle), -20.0, 2.0) - 0.5) * sounding),
        hiss_T=_smooth(_ramp(_ratio(high, voice), -4.0, 8.0) * _ramp(_db(high / loud), -26, -12)),
    )


def _spectrum(wave_N: NDArray[np.float32]) -> NDArray[np.float64]:
    num_frames = -(-len(wave_N) // SAMPLES_PER_FRAME)
    half = (_WINDOW - SAMPLES_PER_FRAME) // 2
    padded = np.zeros(num_frames * SAMPLES_PER_FRAME + 2 * half, np.float64)
    padded[half : half + len(wave_N)] = wave_N
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::SAMPLES_PER_FRAME]
    spectrum = np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)
    return np.square(np.abs(spectrum)) / _WINDOW


def _band(power: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    step = SAMPLE_RATE / _WINDOW
    return np.asarray(power[:, round(low / step) : round(high / step)].sum(axis=1))


def _db(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(10 * np.log10(share + 1e-12))


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return _db(a) - _db(b + 1e-9)


def _ramp(value: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
    return np.asarray(np.clip((value - start) / (end - start), 0, 1))


def _smooth(curve: NDArray[np.float64]) -> Curve:
    """Return the curve without flicker between neighbours, not delayed."""
    padded = np.pad(curve, 1, mode="edge")
    return (0.22 * padded[:-2] + 0.56 * padded[1:-1] + 0.22 * padded[2:]).astype(np.float32)
