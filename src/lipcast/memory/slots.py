"""Device buffers (slots) into which offloaded tensors are prefetched.

Inputs: the items to use, one after the other, and the items that follow. Output: the bytes of an item on the
device, ready for the computation that is enqueued next. State: which item each slot holds, when it will have
arrived, and what still uses the slot. Invariant: a copy into a slot begins after all computation and all
copies that use the slot's memory, including the computation that used it before the slot was allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """An item that is streamed through slots: how to copy it to the device, and how to read it there.

    `fetch` starts a copy into a slot that begins after the given events, and returns the event of its end.
    `view` lives as long as the pool: items may share it.
    """

    fetch: Callable[[Tensor, Sequence[Event]], Event | Future[Event]]
    view: Callable[[Tensor], Any]


@dataclass(slots=True, eq=False)
class _Slot:
    buffer: Tensor
    free: list[Event]
    """Events after which nothing uses the buffer, apart from the copy into it."""
    item: Streamed | None = None
    ready: Event | Future[Event] = None
    views: dict[int, Any] = field(default_factory=dict)
    """What items see in the buffer, by the id of their `view`; made once."""


class SlotPool:
    """Slots of one size. An item is usable from `acquire` until the next `acquire` or `release`."""

    def __init__(
        self, arena: Arena, copier: Copier, *, part: str, num_slots: int, slot_bytes: int
    ) -> None:
        """Allocate all slots or none. `slot_bytes` is the size of the largest item.

        Raises torch.OutOfMemoryError.
        """
        self._arena, self._copier = arena, copier
        self._slots: list[_Slot] = []
        self._current: _Slot | None = None
        try:
            for _ in range(num_slots):
                buffer = arena.allocate(part, slot_bytes)
                # The allocator may hand out memory that computation already enqueued still uses.
                self._slots.append(_Slot(buffer, [copier.here()]))
        except BaseException:
            self.close()
            raise

    def acquire(self, item: Streamed) -> Any:
        """Return the item's view on the device, for the computation that is enqueued from now on."""
        if self._current is None or self._current.item is not item:
            self.release()
            slot = self._holding(item)
            if slot is None:
                slot = self._slots[0]
                self._load(slot, item)
            for event in (self._arrival(slot), *slot.free):
                self._copier.wait(event)
            self._current, slot.free = slot, []
        views = self._current.views
        if id(item.view) not in views:
            views[id(item.view)] = item.view(self._current.buffer)
        return views[id(item.view)]

    def prefetch(self, upcoming: Sequence[Streamed]) -> None:
        """Start to copy the items that follow into slots that hold neither them nor the current one."""
        wanted = upcoming[: len(self._slots) - 1]
        for item in wanted:
            if self._holding(item) is not None:
                continue
            spare = (s for s in self._slots if s is not self._current and s.item not in wanted)
            self._load(next(spare), item)

    def holds(self, item: Streamed) -> bool:
        """Return whether a slot holds the item, or will."""
        return self._holding(item) is not None

    @property
    def current_buffer(self) -> Tensor:
        """The slot of the item acquired last."""
        assert self._current is not None, "no item is acquired"
        return self._current.buffer

    def copied_out(self, event: Event) -> None:
        """Keep the current slot from being overwritten before `event`, the end of a copy out of it."""
        assert self._current is not None
        self._current.free.append(event)

    def release(self) -> None:
        """Allow the current slot to be overwritten after the computation enqueued so far."""
        if self._current is not None:
            self._current.free.append(self._copier.here())
            self._current = None

    def close(self) -> None:
        """Wait for the copies and the computation in progress, and free the slots."""
        with ExitStack() as stack:  # frees every slot, even if waiting for one of them raises
            for slot in self._slots:
                stack.callback(self._arena.release, slot.buffer)
                stack.callback(self._finish, slot)
            self._slots = []
            self.release()

    def _finish(self, slot: _Slot) -> None:
        ready = _result_of(slot.ready) if isinstance(slot.ready, Future) else slot.ready
        for event in (ready, *slot.free):
            if event is not None:
                self._copier.finish(event)

    def _holding(self, item: Streamed) -> _Slot | None:
        return next((s for s in self._slots if s.item is item), None)

    def _load(self, slot: _Slot, item: Streamed) -> None:
        slot.free += _called_off(slot.ready)
        slot.item = slot.ready = None  # stays so if the copy cannot begin
        slot.ready = item.fetch(slot.buffer, slot.free)
        slot.item = item

    def _arrival(self, slot: _Slot) -> Event:
        """Return the event of the item's arrival; raise the error that its copy ended with."""
        if isinstance(slot.ready, Future):
            try:
                slot.ready = slot.ready.result()
            except BaseException:
                slot.item = slot.ready = None
                raise
        return slot.ready


def _called_off(ready: Event | Future[Event]) -> list[Event]:
    """Cancel a copy that nobody waits for any more; return the event of its end if it has begun."""
    if isinstance(ready, Future):
        ready = None if ready.cancel() else _result_of(ready)
    return [] if ready is None else [ready]


def _result_of(future: Future[Event]) -> Event:
    """Return the event of a copy, or None if it failed or never began."""
    with suppress(Exception, CancelledError):
        return future.result()
    return None
