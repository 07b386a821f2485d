"""A speech synthesis and a detector of voices that compute nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from lipcast.speech.sound import Sound

RATE = 24_000
LONG = 20.0
"""Seconds of speech for a text with the word "long"; all others take 0.5 s."""


class FakeTTS:
    """Speaks every text as a tone."""

    identity = "fake"

    def __init__(self) -> None:
        self.spoken: list[str] = []

    async def speak(self, text: str) -> AsyncGenerator[Sound, None]:
        self.spoken.append(text)
        seconds = LONG if "long" in text else 0.5
        wave = 9000 * np.sin(np.arange(round(seconds * RATE)) * 0.1)
        yield Sound(wave.astype(np.int16), RATE)

    async def prepare(self) -> None:
        self.spoken.clear()

    async def close(self) -> None: ...


def loud(chunk: np.ndarray) -> float:
    """A detector of voices that hears any sound."""
    return float(np.abs(chunk).max() > 0.05)
