"""Speech-like sound without a voice: syllables of a buzz through formants, with hisses, hums and pauses.

Nothing has to be installed for it. It is not language, but it has what a mouth follows: vowels that open and
round, closures, fricatives, stress and phrases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE

Wave = NDArray[np.float32]
_VOWELS = np.array([
    (300, 2300, 3000), (430, 2050, 2650), (600, 1800, 2500), (780, 1300, 2500), (700, 1100, 2450),
    (500, 900, 2400), (330, 800, 2300), (500, 1450, 2450), (320, 1750, 2200),
])  # fmt: skip
"""First three formants in Hz."""
_BANDWIDTHS = np.array([80.0, 110.0, 170.0])
_STEP = 80
"""Samples between two points of every contour: 5 ms."""
_HARMONICS = 28


def babble(num_samples: int, seed: int) -> Wave:
    """Return so many samples at 16 kHz, the same ones for a seed."""
    rng = np.random.default_rng((seed, 3))
    num_points = num_samples // _STEP + 2
    voice, hiss, formants = _contours(num_points, rng)
    pitch = _pitch(num_points, voice, rng)
    times = np.arange(num_samples) / _STEP
    points = np.arange(num_points)
    phase = 2 * np.pi * np.cumsum(np.interp(times, points, pitch)) / SAMPLE_RATE
    wave = np.zeros(num_samples)
    for harmonic in range(1, _HARMONICS + 1):
        gain = voice * _resonance(harmonic * pitch, formants) / harmonic**0.7
        wave += np.interp(times, points, gain) * np.sin(harmonic * phase)
    noise = _bright(rng.standard_normal(num_samples), low=rng.uniform(3000, 4200))
    wave += 0.5 * np.interp(times, points, hiss) * noise
    wave += 10 ** rng.uniform(-4.5, -3.5) * rng.standard_normal(num_samples)
    return (0.5 * wave / max(1e-6, float(np.abs(wave).max()))).astype(np.float32)


def _contours(
    num_points: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the strength of the voice, that of the hiss and the formants, at each point."""
    voice, hiss = np.zeros(num_points), np.zeros(num_points)
    formants = np.tile(_VOWELS[7].astype(np.float64), (num_points, 1))
    throat = rng.uniform(0.92, 1.18)
    point = int(rng.integers(10, 60))
    left = int(rng.integers(3, 14))
    while point < num_points:
        consonant, vowel = int(rng.integers(8, 20)), int(rng.integers(14, 42))
        kind = str(rng.choice(["stop", "hiss", "hum", "none"], p=[0.35, 0.25, 0.25, 0.15]))
        start, end = point + consonant, min(point + consonant + vowel, num_points)
        if kind == "hiss":
            hiss[point:start] = rng.uniform(0.3, 0.8)
        elif kind == "hum":
            voice[point:start] = 0.12
        voice[start:end] = rng.uniform(0.45, 1.0)
        formants[point:end] = throat * _VOWELS[int(rng.integers(len(_VOWELS)))]
        point, left = end, left - 1
        if left == 0:
            point += int(rng.integers(40, 160))
            left = int(rng.integers(3, 14))
    smooth = np.hanning(9) / np.hanning(9).sum()
    voice, hiss = (np.convolve(curve, smooth, mode="same") for curve in (voice, hiss))
    wide = np.hanning(15) / np.hanning(15).sum()
    formants = np.stack([np.convolve(f, wide, mode="same") for f in formants.T], axis=1)
    return voice, hiss, np.maximum(formants, 150.0)


def _pitch(
    num_points: int, voice: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the pitch in Hz: a melody that falls within a phrase and starts anew."""
    base = float(rng.choice([rng.uniform(90, 140), rng.uniform(170, 250)]))
    melody = np.convolve(rng.standard_normal(num_points + 80), np.hanning(81) / 12, mode="valid")
    since = np.zeros(num_points)
    for point in range(1, num_points):
        since[point] = (
            since[point - 1] + 1 if voice[max(0, point - 30) : point + 1].max() > 0 else 0
        )
    fall = 1.12 - 0.22 * np.clip(since / 400, 0, 1)
    return np.asarray(base * fall * (1 + 0.10 * melody[:num_points]))


def _resonance(
    frequency: NDArray[np.float64], formants: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the gain of the throat at a frequency, [points]."""
    away = (frequency[:, None] - formants) / _BANDWIDTHS
    return np.asarray((np.array([1.0, 0.55, 0.25]) / np.sqrt(1 + away**2)).sum(axis=1))


def _bright(noise: NDArray[np.float64], *, low: float) -> NDArray[np.float64]:
    """Return the noise without what is below a frequency."""
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    return np.asarray(np.fft.irfft(spectrum * np.clip((frequency - low) / 800, 0, 1), len(noise)))
