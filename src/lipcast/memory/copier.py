"""Copies between host and device that run beside the computation.

A `Event` is a point in the work of the device. Copies begin after marks and give marks; the computation
waits for marks. No host thread waits for any of it. `DirectCopier` does everything at once, in order:
the twin for a device without streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

Event = Any
"""What a copier calls a point in time; only the copier that made one can read it."""


class Copier(Protocol):
    """The link between host and device."""

    def here(self) -> Event:
        """The computation enqueued so far."""

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        """Copy host `source` to device `target` when all of `after` are done."""

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        """Copy device `source` to host `target` when all of `after` are done."""

    def wait(self, mark: Event) -> None:
        """The computation that is enqueued from now on begins after `mark`."""

    def finish(self, mark: Event) -> None:
        """The calling thread waits until `mark` is done."""


class DirectCopier:
    """Copies on the spot."""

    def here(self) -> Event:
        return None

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        del after
        target.copy_(source)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        del after
        target.copy_(source)

    def wait(self, mark: Event) -> None:
        del mark

    def finish(self, mark: Event) -> None:
        del mark


class CudaCopier:
    """One stream for each direction, so that both directions of the link work at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to_device = torch.cuda.Stream(device)
        self._to_host = torch.cuda.Stream(device)

    def here(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        return self._copy(self._to_device, target, source, after)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        return self._copy(self._to_host, target, source, after)

    def wait(self, mark: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: Event) -> None:
        mark.synchronize()

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Iterable[Event]
    ) -> Event:
        for mark in after:
            stream.wait_event(mark)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        return event
