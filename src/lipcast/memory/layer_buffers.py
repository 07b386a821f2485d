"""One buffer per layer, some on the device, the others in host memory and passing through slots.

Input: sizes, placements, arenas, a copier. Output: the bytes of a layer, ready for the computation that
follows. Rings and sinks are made of these. State: where each layer is, and its last copy to the host.
Invariant: a layer is fetched only after its last copy to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event
from lipcast.memory.slots import SlotPool, Streamed
from lipcast.planning.plan import Placement

ByteRange = tuple[int, int]
"""(first byte, number of bytes)."""


@dataclass(frozen=True, slots=True)
class BufferAllocator:
    """Where buffers are taken from, and under which names they are counted."""

    device: Arena
    host: Arena
    copier: Copier
    device_part: str
    host_part: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Another form of a layer's bytes: its size, how to read it, and how to make it of the old one."""

    num_bytes: int
    view: Callable[[Tensor], Any]
    convert: Callable[[Any, Any], None]


class LayerBuffers:
    """Buffers of equal size by layer. `planes(layer)` is valid until another layer is asked for."""

    def __init__(
        self,
        num_bytes: int,
        placements: Sequence[Placement],
        *,
        allocator: BufferAllocator,
        view: Callable[[Tensor], Any],
    ) -> None:
        """`num_bytes` per layer; `view` makes of a layer's bytes what `planes` gives."""
        self.num_layers, self.layer_bytes = len(placements), num_bytes
        self._room, self._view = allocator, view
        self._where: list[Placement] = list(placements)
        self._homes: list[Tensor] = [self._allocate(where) for where in placements]
        self._planes = [view(home) for home in self._homes]
        self._on_host: list[Event] = [None] * self.num_layers
        """The last copy of each layer to the host."""
        self._items = self._make_items()
        self._pool: SlotPool | None = None
        self._following = self

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers, wherever they are."""
        return self.num_layers * self.layer_bytes

    def pass_through(self, pool: SlotPool | None, following: LayerBuffers) -> None:
        """Stream through `pool`. After the last layer, the first of `following` is fetched ahead."""
        self._pool, self._following = pool, following

    def planes(self, layer: int) -> Any:
        """The view of a layer on the device, for the computation enqueued from now on."""
        if self._where[layer] == "resident":
            return self._planes[layer]
        assert self._pool is not None, "streamed layers pass through slots"
        planes = self._pool.acquire(self._items[layer])
        if (following := self._after(layer)) is not None:
            self._pool.prefetch([following])
        return planes

    def write_back(self, layer: int, ranges: Iterable[ByteRange]) -> None:
        """These bytes of the layer asked for last have changed on the device."""
        if self._where[layer] == "resident":
            return
        assert self._pool is not None
        copier, home, slot = self._room.copier, self._homes[layer], self._pool.current_buffer
        for first, count in ranges:
            after = [copier.here(), *self._marks(layer)]
            mark = copier.store(
                home[first : first + count], slot[first : first + count], after=after
            )
            self._on_host[layer] = mark
            self._pool.copied_out(mark)

    def _after(self, layer: int) -> Streamed | None:
        """The streamed layer that is needed next."""
        later = range(layer + 1, self.num_layers)
        found = next((i for i in later if self._where[i] != "resident"), None)
        return self._items[found] if found is not None else self._following.first_streamed()

    def first_streamed(self) -> Streamed | None:
        """The first layer that passes through slots, if any does."""
        streamed = (i for i in range(self.num_layers) if self._where[i] != "resident")
        return next((self._items[i] for i in streamed), None)

    # Moving

    def apply_plan(self, placements: Sequence[Placement], rewrite: Rewrite | None = None) -> None:
        """Move layers, and bring all of them into another form if `rewrite` says which.

        No layer passes through slots any more; call `pass_through` again. Raises
        torch.OutOfMemoryError where there is no room, and then every layer is whole at one place.
        """
        self.pass_through(None, self)
        leaving_first = sorted(range(self.num_layers), key=lambda i: placements[i] == "resident")
        for layer in leaving_first:
            if rewrite is not None:
                self._rewrite(layer, placements[layer], rewrite)
            elif placements[layer] != self._where[layer]:
                self._move(layer, placements[layer])
        if rewrite is not None:
            self.layer_bytes, self._view = rewrite.num_bytes, rewrite.view
        self._items = self._make_items()

    def release(self) -> None:
        """Give all memory back."""
        for layer in range(self.num_layers):
            self._finish_copies(layer)
            self._arena(layer).release(self._homes[layer])
        self._homes, self._planes = [], []

    def _move(self, layer: int, where: Placement) -> None:
        new = self._allocate(where)
        copier, old = self._room.copier, self._homes[layer]
        begin = copier.store if where != "resident" else copier.fetch
        copier.finish(begin(new, old, after=[copier.here(), *self._marks(layer)]))
        self._relocate(layer, where, new)

    def _rewrite(self, layer: int, where: Placement, rewrite: Rewrite) -> None:
        if self._homes[layer].nbytes == rewrite.num_bytes:
            return  # an earlier call that ran out of memory came this far
        allocator, copier = self._room, self._room.copier
        old = self._on_device(layer)
        new = allocator.device.allocate(allocator.device_part, rewrite.num_bytes)
        rewrite.convert(self._view(old), rewrite.view(new))
        if old is not self._homes[layer]:
            allocator.device.release(old)
        if where == "resident":
            self._relocate(layer, where, new, view=rewrite.view)
            return
        home = self._allocate(where, rewrite.num_bytes)
        copier.finish(copier.store(home, new, after=[copier.here()]))
        allocator.device.release(new)
        self._relocate(layer, where, home, view=rewrite.view)

    def _on_device(self, layer: int) -> Tensor:
        """The layer's bytes on the device: its home, or a copy."""
        if self._where[layer] == "resident":
            return self._homes[layer]
        allocator, copier = self._room, self._room.copier
        copy = allocator.device.allocate(allocator.device_part, self.layer_bytes)
        copier.finish(copier.fetch(copy, self._homes[layer], after=self._marks(layer)))
        return copy

    def _relocate(
        self,
        layer: int,
        where: Placement,
        home: Tensor,
        view: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """From now on the layer lives there."""
        self._finish_copies(layer)
        self._arena(layer).release(self._homes[layer])
        self._where[layer], self._homes[layer] = where, home
        self._planes[layer] = (view or self._view)(home)

    def _finish_copies(self, layer: int) -> None:
        for mark in self._marks(layer):
            self._room.copier.finish(mark)
        self._on_host[layer] = None

    def _marks(self, layer: int) -> list[Event]:
        mark = self._on_host[layer]
        return [] if mark is None else [mark]

    def _make_items(self) -> list[Streamed]:
        return [Streamed(partial(self._fetch, i), self._view_slot) for i in range(self.num_layers)]

    def _fetch(self, layer: int, slot: Tensor, after: Sequence[Event]) -> Event:
        marks = [*after, *self._marks(layer)]
        return self._room.copier.fetch(slot[: self.layer_bytes], self._homes[layer], after=marks)

    def _view_slot(self, slot: Tensor) -> Any:
        return self._view(slot[: self.layer_bytes])

    def _allocate(self, where: Placement, num_bytes: int | None = None) -> Tensor:
        allocator, count = self._room, self.layer_bytes if num_bytes is None else num_bytes
        if where == "resident":
            return allocator.device.allocate(allocator.device_part, count)
        return allocator.host.allocate(allocator.host_part, count)

    def _arena(self, layer: int) -> Arena:
        return self._room.device if self._where[layer] == "resident" else self._room.host
