"""Live sessions that compute nothing: pictures of one colour, and a speech encoder that hears nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.engine.frames import BlockTimings, FrameBlock
from lipcast.engine.live import LiveSession
from lipcast.engine.live_runner import LiveRunner
from lipcast.engine.live_timeline import LiveTimeline, SoundSettings
from lipcast.engine.live_types import LiveLimits
from lipcast.engine.speech_features import StreamState
from lipcast.errors import AdmissionError
from lipcast.media.audio import PcmSource
from lipcast.media.image import fit_portrait

BLOCK = 12
SIDE = 64


class FakeSession:
    """What a live session needs of a `Session`: a block takes two ticks, and its pictures show its number."""

    def __init__(self, timeline: LiveTimeline, picture: np.ndarray | None = None) -> None:
        """`picture` is shown in place of one colour, and bright while something is said."""
        self._timeline, self._ready, self._picture = timeline, deque(), picture
        self.num_begun, self.closed = 0, False
        self._under_way: int | None = None
        self.failure: Exception | None = None
        self.features: list[torch.Tensor] = []
        self.contexts: list[torch.Tensor] = []
        geometry = SimpleNamespace(height=SIDE, width=SIDE)
        self.spec = SimpleNamespace(video_frames_per_block=BLOCK, geometry=geometry)

    def tick(self) -> bool:
        if self._under_way is not None:
            frames = np.stack([self._shown()] * BLOCK)
            audio = self._timeline.take_samples(BLOCK)
            timings = BlockTimings(0, 0.1, 0.1)
            self._ready.append(
                FrameBlock(self._under_way, frames, audio, self._timeline.sample_rate, timings)
            )
            self._under_way = None
            return True
        features = self._timeline.features(self.num_begun, wait=False)
        if features is None:
            return False
        self.features.append(features)
        self._under_way, self.num_begun = self.num_begun, self.num_begun + 1
        return True

    def _shown(self) -> np.ndarray:
        """White where something is said, else the number of the block as grey; or the picture."""
        speaks = self._timeline._begun[0].is_speech
        if self._picture is not None:
            return self._picture // 2 + 127 if speaks else self._picture
        return np.full((SIDE, SIDE, 3), 255 if speaks else self._under_way % 100, np.uint8)

    def take(self):
        if self.failure is not None:
            raise self.failure
        while self._ready:
            yield self._ready.popleft()

    def cancel(self) -> None:
        pass

    def set_context(self, context: torch.Tensor) -> None:
        self.contexts.append(context)

    def close(self) -> None:
        self.closed = True


class FakeFeatures:
    """Features of nothing, as soon as there is sound for a block."""

    def __init__(self, state: StreamState) -> None:
        self.state, self._finished = state, False

    def push(self, wave_N: np.ndarray) -> None:
        self.state.num_samples += len(wave_N)

    def finish(self) -> None:
        self._finished = True

    def take(self, block: int) -> torch.Tensor | None:
        has_come = self.state.num_samples >= (block + 1) * BLOCK * 640
        return torch.zeros(1, 1, BLOCK) if has_come or self._finished else None


class FakeModel:
    """What the server needs of a model."""

    def __init__(self, *, room: int = 100, side: int | None = None) -> None:
        """`room`: sessions that the memory would hold; `side`: show the portrait, so large."""
        self._side = side
        self.sessions: list[FakeSession] = []
        self.keywords: list[dict[str, Any]] = []
        self.room, self.closed = room, False
        self._runner = LiveRunner(self._tick)

    def live(
        self, *, image: Any, prompt: str, sample_rate: int, options: GenerateOptions
    ) -> LiveSession:
        if sum(not session.closed for session in self.sessions) >= self.room:
            raise AdmissionError("this session does not fit beside those that are open")
        self.keywords.append({"prompt": prompt, "image": image, "options": options})
        limits = LiveLimits(max_pending_s=5)
        timeline = LiveTimeline(
            SoundSettings(
                lambda rate: PcmSource(rate, mux_rate=sample_rate),
                FakeFeatures, torch.zeros(1, 1, BLOCK), BLOCK, sample_rate, limits.max_pending_s,
            )
        )  # fmt: skip
        fake = FakeSession(timeline, self._side and fit_portrait(image, self._side, self._side))
        self.sessions.append(fake)
        live = LiveSession(fake, timeline, encode_prompt=lambda _: torch.zeros(1), limits=limits)
        self._runner.add(live)
        return live

    def close(self) -> None:
        self.closed = True

    def _tick(self, sessions: Sequence[FakeSession]) -> bool:
        return any([session.tick() for session in sessions])  # noqa: C419 (every session gets its tick)
