"""What the server measures, in Prometheus' text format.

Input: the statistics of sessions, looked at once a second; memory when it is asked for. Output: `/metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lipcast.engine.live_types import LiveStats

_LATENCIES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Metrics:
    """One registry for one server."""

    def __init__(self, device_bytes: Callable[[], int]) -> None:
        """`device_bytes` returns the bytes taken on the device, 0 where they are not counted."""
        self._registry = registry = CollectorRegistry()
        self.first_frame = Histogram(
            "lipcast_first_frame_seconds",
            "From the first sound of an utterance to its first picture.",
            buckets=_LATENCIES,
            registry=registry,
        )
        self.block = Histogram(
            "lipcast_block_seconds",
            "Computing time of a block of 12 frames.",
            buckets=_LATENCIES,
            registry=registry,
        )
        self.answer = Histogram(
            "lipcast_answer_seconds",
            "From the end of a question to the first sound of its answer.",
            buckets=_LATENCIES,
            registry=registry,
        )
        self.speech_failures = Counter(
            "lipcast_speech_failures", "Texts, turns and answers that failed.", registry=registry
        )
        self._frames = Counter("lipcast_frames", "Frames that were sent.", registry=registry)
        self._dropped = Counter(
            "lipcast_frames_dropped", "Frames that were dropped.", ["reason"], registry=registry
        )
        self._lost_sound = Counter(
            "lipcast_sound_dropped_seconds", "Sound that was not spoken.", registry=registry
        )
        self._interrupts = Counter("lipcast_interrupts", "Interruptions.", registry=registry)
        self.opened = Counter("lipcast_sessions_opened", "Sessions opened.", registry=registry)
        self.refused = Counter(
            "lipcast_sessions_refused", "Sessions refused for want of room.", registry=registry
        )
        self.failed = Counter("lipcast_sessions_failed", "Sessions that failed.", registry=registry)
        self._sessions = Gauge("lipcast_sessions", "Sessions that are open.", registry=registry)
        self._queued = Gauge("lipcast_queued_frames", "Frames that wait.", registry=registry)
        self._pending = Gauge(
            "lipcast_pending_sound_seconds", "Sound that waits.", registry=registry
        )
        self._rate = Gauge(
            "lipcast_frames_per_second", "Frames made in the last second.", registry=registry
        )
        memory = Gauge("lipcast_memory_bytes", "Memory in use.", ["of"], registry=registry)
        self._process = psutil.Process()
        memory.labels("process").set_function(self.process_bytes)
        memory.labels("device").set_function(device_bytes)

    def process_bytes(self) -> int:
        """Return the host memory of this process."""
        return int(self._process.memory_info().rss)

    def late(self, num_frames: int) -> None:
        """Count pictures that the encoder of a WebRTC connection did not keep up with."""
        self._dropped.labels("late").inc(num_frames)

    def show(self, sessions: Sequence[LiveStats], frames_per_s: float) -> None:
        """Show how the open sessions are now."""
        self._sessions.set(len(sessions))
        self._queued.set(sum(stats.num_frames_queued for stats in sessions))
        self._pending.set(sum(stats.pending_s for stats in sessions))
        self._rate.set(frames_per_s)

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def count(self, before: LiveStats | None, now: LiveStats) -> None:
        """Count what has changed in a session: its statistics before (None: it is new) and now."""

        def grown(name: str) -> float:
            value: float = getattr(now, name) - (getattr(before, name) if before else 0)
            return value

        self._frames.inc(grown("num_frames_given"))
        self._dropped.labels("idle").inc(grown("num_idle_dropped"))
        self._dropped.labels("interrupted").inc(grown("num_interrupted_dropped"))
        self._lost_sound.inc(grown("dropped_sound_s"))
        self._interrupts.inc(grown("num_interrupts"))
        last = before.first_frame_s if before else None
        if now.first_frame_s is not None and now.first_frame_s != last:
            self.first_frame.observe(now.first_frame_s)
        if now.block_s is not None and grown("num_frames_made"):
            self.block.observe(now.block_s)
