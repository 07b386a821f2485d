"""A model that makes frames of nothing at once, for tests of what stands around a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lipcast.config.direction import Direction
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.video_spec import video_spec
from lipcast.engine.frames import BlockTimings, FrameBlock
from lipcast.media.characters import Character

NUM_BLOCKS = 4
FRAMES = 12
SAMPLE_RATE = 16_000


class FakeSession:
    """Yields NUM_BLOCKS blocks; raises `error` in place of block `fail_at`."""

    num_blocks = NUM_BLOCKS
    num_frames = NUM_BLOCKS * FRAMES

    def __init__(
        self, options: GenerateOptions, error: BaseException | None, *, fail_at: int, noise: bool
    ) -> None:
        self.spec = video_spec(options, DiTConfig(), VAEConfig(), height=64, width=64)
        self._error, self._fail_at, self._noise = error, fail_at, noise
        self.closed = False

    def __iter__(self) -> Iterator[FrameBlock]:
        for index in range(NUM_BLOCKS):
            if self._error is not None and index == self._fail_at:
                raise self._error
            yield block_of(index, noise=self._noise)

    def report(self) -> dict[str, Any]:
        return {"seconds": {"speech_s": 0.1, "dit_s": 0.2, "vae_s": 0.3}}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_error: object) -> None:
        self.closed = True


def block_of(index: int, *, noise: bool) -> FrameBlock:
    frames = np.full((FRAMES, 64, 64, 3), 40 * index, np.uint8)
    if noise:
        frames = np.random.default_rng(index).integers(0, 255, frames.shape, np.uint8)
    audio = np.zeros((FRAMES * SAMPLE_RATE // 25, 1), np.float32)
    return FrameBlock(index, frames, audio, SAMPLE_RATE, BlockTimings(0.1, 0.2, 0.3))


class FakeModel:
    """Records what it was asked; `error` is raised in place of block `fail_at`."""

    def __init__(
        self, error: BaseException | None = None, *, fail_at: int = 0, noise: bool = False
    ) -> None:
        self.asked = SimpleNamespace(load={}, stream={})
        self.error, self.how = error, {"fail_at": fail_at, "noise": noise}
        self.session: FakeSession | None = None

    def load(self, name: str | Path, **how: Any) -> FakeModel:
        self.asked.load = {"name": name, **how}
        return self

    def close(self) -> None:
        """Nothing was started."""

    def stream(
        self,
        *,
        image: Any,
        audio: Any,
        prompt: str,
        direction: Direction,
        options: GenerateOptions,
        characters: Sequence[Character] = (),
    ) -> FakeSession:
        self.asked.stream = {
            "image": image, "audio": audio, "prompt": prompt, "direction": direction,
            "characters": characters,
        }  # fmt: skip
        self.session = FakeSession(options, self.error, **self.how)
        return self.session
