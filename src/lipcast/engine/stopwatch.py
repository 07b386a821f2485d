"""Seconds by part, in total and since the last lap.

On a GPU a part is measured between two events on the current stream, read once the GPU has passed them: a
lap then holds the parts that are done, usually those of the block before. Nothing waits for the GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch

PARTS = ("speech_s", "dit_s", "vae_s")


class TimingEvent(Protocol):
    """A `torch.cuda.Event` with timing."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: TimingEvent, /) -> float: ...


class Stopwatch:
    """Adds up seconds by part."""

    def __init__(
        self,
        device: torch.device,
        parts: tuple[str, ...] = PARTS,
        *,
        make_event: Callable[[], TimingEvent] | None = None,
    ) -> None:
        """`make_event` makes the events of a GPU; a CPU is measured by the clock."""
        if make_event is None and device.type == "cuda":
            make_event = _cuda_event
        self._make_event, self._parts = make_event, parts
        self._open: deque[tuple[str, TimingEvent, TimingEvent]] = deque()
        self._totals = dict.fromkeys(parts, 0.0)
        self._lap = dict.fromkeys(parts, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the body to `name`, also if it raises."""
        if self._make_event is not None:
            begin, end = self._make_event(), self._make_event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._open.append((name, begin, end))
            return
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began_s)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._totals[name] += seconds
        self._lap[name] += seconds

    def lap(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        self._read_events()
        lap, self._lap = self._lap, dict.fromkeys(self._parts, 0.0)
        return lap

    def totals(self) -> dict[str, float]:
        """Return the seconds by part so far."""
        self._read_events()
        return dict(self._totals)

    def _read_events(self) -> None:
        """Count the parts that the GPU has finished, in order."""
        while self._open and self._open[0][2].query():
            name, begin, end = self._open.popleft()
            self.add(name, begin.elapsed_time(end) / 1000)


def _cuda_event() -> TimingEvent:
    return cast("TimingEvent", torch.cuda.Event(enable_timing=True))
