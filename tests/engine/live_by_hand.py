"""A live session without a thread: a test advances it, and time passes when told."""

from __future__ import annotations

from typing import Any

import torch

from fake_live import BLOCK, FakeSession
from lipcast.engine.live import LiveSession
from lipcast.engine.live_runner import LiveRunner
from lipcast.engine.live_sounds import LiveSounds
from lipcast.engine.live_types import LiveLimits
from lipcast.media.audio import PcmSource
from lipcast.media.voices import mixed

RATE = 16_000
LIMITS = LiveLimits(max_pending_s=5, max_frames_ahead=24, patience_s=1)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Live:
    """A live session on a `FakeSession`, advanced by hand."""

    def __init__(self, tiny, **options: Any) -> None:
        self.clock = Clock()
        self.timeline = LiveSounds(tiny.bundle, mixed).timeline(
            lambda rate: PcmSource(rate, mux_rate=RATE),
            video_frames_per_block=BLOCK,
            sample_rate=RATE,
            max_pending_s=LIMITS.max_pending_s,
        )
        self.fake = FakeSession(self.timeline)
        self.session = LiveSession(
            self.fake, self.timeline, encode_prompt=torch.tensor, limits=LIMITS, clock=self.clock, **options
        )  # fmt: skip
        self.runner = LiveRunner(lambda _: self.fake.tick(), threaded=False)
        self.runner.add(self.session)

    def run(self, most: int = 50) -> None:
        while most and self.runner.step():
            most -= 1

    def take(self, count: int = 10_000) -> list:
        """Take frames as far as they come, advancing the session in between."""
        taken = []
        while len(taken) < count:
            found = self.session.poll(count - len(taken))
            taken += found
            if not found and not self.runner.step():
                break
        return taken
