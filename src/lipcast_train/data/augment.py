"""Make speech sound as if recorded elsewhere: speed, gaps, equaliser, room, noise and level.

`retimed` moves what is heard, and so must the mouth; after `recorded`, a mouth that was computed before stays
true.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE

Wave = NDArray[np.float32]


def retimed(wave_N: Wave, num_samples: int, rng: np.random.Generator) -> Wave:
    """Return so many samples, faster or slower by up to 15 %, at times with a silence put in."""
    speed = rng.uniform(0.87, 1.15)
    places = np.arange(num_samples) * speed
    wave = np.interp(places, np.arange(len(wave_N)), wave_N, right=0.0).astype(np.float32)
    if rng.random() < 0.35:
        start = int(rng.integers(num_samples))
        length = int(rng.uniform(0.3, 1.2) * SAMPLE_RATE)
        wave = np.concatenate([wave[:start], np.zeros(length, np.float32), wave[start:]])
    return np.asarray(wave[:num_samples], np.float32)


def recorded(wave_N: Wave, rng: np.random.Generator) -> Wave:
    """Return the same speech through another room and microphone."""
    wave = wave_N.astype(np.float64)
    if rng.random() < 0.6:
        wave = _equalised(wave, rng)
    if rng.random() < 0.35:
        wave = _in_room(wave, rng)
    if rng.random() < 0.6:
        level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(14, 40) / 20)
        wave = wave + level * _noise(len(wave), rng)
    peak = max(float(np.abs(wave).max()), 1e-6)
    return (wave * (rng.uniform(0.15, 0.95) / peak)).astype(np.float32)


def _equalised(wave: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the sound with a gain of up to 8 dB that changes slowly over the octaves."""
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequency, 60) / 60)
    gains = np.interp(octaves, np.arange(8), rng.uniform(-8, 8, 8))
    return np.asarray(np.fft.irfft(np.fft.rfft(wave) * 10 ** (gains / 20), len(wave)))


def _in_room(wave: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the sound with the echo of a room of 0.1 to 0.5 s."""
    decay = rng.uniform(0.1, 0.5)
    times = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay)
    echo *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    size = len(wave) + len(echo)
    return np.asarray(
        np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo, size), size)[: len(wave)]
    )


def _noise(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise of RMS 1 whose spectrum falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 8) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, num_samples)
    return np.asarray(noise / max(1e-12, float(np.sqrt(np.mean(noise**2)))))
