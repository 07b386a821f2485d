"""Make short videos through the public door, and compare them.

Sound and portrait are arrays, so that neither PyAV nor a file format is needed.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.api import Lipcast

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE_RATE = 16_000
SECONDS_PER_BLOCK = 0.48
TINY_VIDEO: dict[str, Any] = {"size": "64*64", "infer_frames": 12, "seed": 7}
SHORT_VIDEO: dict[str, Any] = {"size": "128*128", "infer_frames": 24, "seed": 7}


@dataclass(frozen=True, slots=True)
class Made:
    """A finished video."""

    frames: NDArray[np.uint8]
    report: dict[str, Any]

    @property
    def fallbacks(self) -> list[str]:
        """Names of the fallbacks that were taken."""
        taken = self.report.get("memory", {}).get("fallbacks", {}).get("taken", [])
        return [next(iter(entry.values())) for entry in taken]


def portrait() -> NDArray[np.uint8]:
    """A picture with soft shapes, 1280 x 720 as a phone takes it: no detail that rounding moves."""
    rows, columns = np.mgrid[0:1280, 0:720] / 720.0
    layers = [np.sin(3 * rows + phase) * np.cos(4 * columns - phase) for phase in (0, 1, 2)]
    return np.stack([(127.5 * (1 + layer)).astype(np.uint8) for layer in layers], axis=-1)


def speech(num_blocks: int) -> NDArray[np.int16]:
    """A voice of so many blocks: the example's, repeated if need be."""
    with wave.open(str(EXAMPLES / "speech_b_male.wav")) as file:
        assert (file.getframerate(), file.getsampwidth()) == (SAMPLE_RATE, 2)
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        sound = sound[:: file.getnchannels()]
    return np.resize(sound, int(num_blocks * SECONDS_PER_BLOCK * SAMPLE_RATE))


def make_video(
    model: Lipcast,
    num_blocks: int,
    *,
    prompt: str | Path = "calm",
    on_block: Callable[[], object] = lambda: None,
    **options: Any,
) -> Made:
    """Make a video of so many blocks; `on_block` is called when one has come."""
    with model.session(
        image=portrait(), prompt=prompt, sample_rate=SAMPLE_RATE, **{**SHORT_VIDEO, **options}
    ) as live:
        live.push(speech(num_blocks))
        live.finish()
        frames = []
        for block in live:
            frames.append(block.frames)
            on_block()
        return Made(np.concatenate(frames), live.report())


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal to noise; 120 where nothing differs."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 120.0 if error == 0 else float(10 * np.log10(255**2 / error))
