"""Sounds made for tests, and where the examples are."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = Path(__file__).parent / "data"
"""For two voices of examples/: how far the mouth is open, as it was drawn, 25 values a second."""


def syllables(seconds: float, rate: int = 16_000) -> np.ndarray:
    """A buzz at 140 Hz, opened and closed four times a second, with a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 8))
    envelope = np.clip(np.sin(2 * np.pi * 4 * t), 0, 1)
    noise = np.random.default_rng(0).normal(0, 0.01, len(t))
    return (0.2 * buzz * envelope + noise).astype(np.float32)


def write_wav(path: Path, seconds: float, rate: int = 16_000) -> Path:
    """Syllables, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((syllables(seconds, rate) * 32767).astype("<i2").tobytes())
    return path
