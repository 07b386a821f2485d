"""Copies between host and device that run beside the computation.

An `Event` is a point in the work of the device. A copy begins after the given events and returns the
event of its end; the computation waits for events. Only `finish` makes the calling thread wait.
`DirectCopier` copies at once, in order: it is the counterpart for a device without streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

Event = Any
"""A point in the work of the device; only the copier that made it can read it."""


class Copier(Protocol):
    """The link between host and device."""

    def here(self) -> Event:
        """Return the end of the computation that is enqueued so far."""

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        """Copy host `source` to device `target` after all events of `after`."""

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        """Copy device `source` to host `target` after all events of `after`."""

    def wait(self, event: Event) -> None:
        """Make the computation that is enqueued from now on begin after `event`."""

    def finish(self, event: Event) -> None:
        """Make the calling thread wait for `event`."""


class DirectCopier:
    """Copies at once, in the calling thread."""

    def here(self) -> Event:
        return None

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        del after
        target.copy_(source)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Event]) -> Event:
        del after
        target.copy_(source)

    def wait(self, event: Event) -> None:
        del event

    def finish(self, event: Event) -> None:
        del event


class CudaCopier:
    """Copies on one stream per direction, so that both directions of the link work at once."""

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

    def wait(self, event: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def finish(self, event: Event) -> None:
        event.synchronize()

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Iterable[Event]
    ) -> Event:
        for event in after:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            end = torch.cuda.Event()
            end.record(stream)
        return end
