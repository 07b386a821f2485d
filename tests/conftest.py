"""What many tests share: the embedded model, loaded once, and short sounds."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import pytest

import lipcast
from sounds import syllables

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def tiny() -> lipcast.Lipcast:
    """The embedded model on the CPU in float32."""
    return lipcast.load("tiny", device="cpu", precision="fp32")


@pytest.fixture
def portrait() -> Path:
    return EXAMPLES / "portrait_0.png"


@pytest.fixture
def sound(tmp_path: Path) -> Callable[[float], Path]:
    """A wav of syllables, so many seconds long, 16 kHz mono."""

    def make(seconds: float, rate: int = 16_000) -> Path:
        path = tmp_path / f"sound_{seconds}_{rate}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((syllables(seconds, rate) * 32767).astype("<i2").tobytes())
        return path

    return make
