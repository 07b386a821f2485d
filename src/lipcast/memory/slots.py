"""A few buffers on the device that things from elsewhere pass through.

Input: items to enter one after the other, and the items that come next. Output: the item's bytes on the
device, ready for the computation that follows. State: which item each slot holds, when it is ready and when
it is free. Invariant: a copy into a slot begins after the computation and the copies that read the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lipcast.memory.copier import Copier, Event


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """Something that passes through slots: how to copy it to the device, and how to read it there.

    `fetch` begins the copy into a slot after the given marks, and gives the mark of its end.
    """

    fetch: Callable[[Tensor, Sequence[Event]], Event | Future[Event]]
    view: Callable[[Tensor], Any]


@dataclass(slots=True, eq=False)
class _Slot:
    buffer: Tensor
    item: Streamed | None = None
    ready: Event | Future[Event] = None
    free: list[Event] = field(default_factory=list)
    views: dict[int, Any] = field(default_factory=dict)
    """Views by item, made once."""


class SlotPool:
    """`acquire` one item after the other; each is usable until the next `acquire` or `release`."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._slots: list[_Slot] = []
        self._current: _Slot | None = None

    def add(self, buffer: Tensor) -> None:
        """One more slot, as big as the biggest item."""
        self._slots.append(_Slot(buffer))

    def acquire(self, item: Streamed) -> Any:
        """The item's view on the device, for the computation enqueued from now on."""
        if self._current is None or self._current.item is not item:
            self.release()
            slot = self._holding(item)
            if slot is None:
                slot = self._slots[0]
                self._load(slot, item)
            self._copier.wait(self._arrival(slot))
            self._current = slot
        views = self._current.views
        if id(item) not in views:
            views[id(item)] = item.view(self._current.buffer)
        return views[id(item)]

    def prefetch(self, upcoming: Sequence[Streamed]) -> None:
        """Begin to copy what comes next into slots that hold neither it nor the current item."""
        wanted = upcoming[: len(self._slots) - 1]
        for item in wanted:
            if self._holding(item) is not None:
                continue
            spare = (s for s in self._slots if s is not self._current and s.item not in wanted)
            self._load(next(spare), item)

    @property
    def current_buffer(self) -> Tensor:
        """The slot of the item entered last."""
        assert self._current is not None, "no item has entered"
        return self._current.buffer

    def copied_out(self, mark: Event) -> None:
        """The current slot is being copied to the host until `mark`."""
        assert self._current is not None
        self._current.free.append(mark)

    def release(self) -> None:
        """The computation with the current item is enqueued; its slot is free after that."""
        if self._current is not None:
            self._current.free.append(self._copier.here())
            self._current = None

    def close(self) -> list[Tensor]:
        """Wait for copies and computation under way, and give the buffers back."""
        self.release()
        for slot in self._slots:
            if isinstance(slot.ready, Future):
                slot.ready = _result_of(slot.ready)
            for mark in (slot.ready, *slot.free):
                if mark is not None:
                    self._copier.finish(mark)
        buffers = [slot.buffer for slot in self._slots]
        self._slots = []
        return buffers

    def _holding(self, item: Streamed) -> _Slot | None:
        return next((s for s in self._slots if s.item is item), None)

    def _load(self, slot: _Slot, item: Streamed) -> None:
        slot.item = None  # stays so if the copy cannot begin
        slot.ready = item.fetch(slot.buffer, slot.free)
        slot.item, slot.free = item, []

    def _arrival(self, slot: _Slot) -> Event:
        """When the slot's item is here; raises what went wrong on its way."""
        if isinstance(slot.ready, Future):
            try:
                slot.ready = slot.ready.result()
            except BaseException:
                slot.item = slot.ready = None
                raise
        return slot.ready


def _result_of(future: Future[Event]) -> Event:
    """What a copy gave; None if it failed or never began, which no longer matters."""
    with suppress(Exception, CancelledError):
        return future.result()
    return None
