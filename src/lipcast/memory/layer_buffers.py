"""One buffer per layer, some on the device, the others in host memory and streamed through slots.

Inputs: a layout, placements, an allocator. Output: the bytes of a layer, ready for the computation that is
enqueued next. KV rings and sinks are made of these. State: where each layer is, in which layout, and its last
copy to the host. Invariants: a layer is fetched only after its last copy to the host; a layer is always whole
in one place; a layer that has never been written is not copied; what will be overwritten before it is read is
not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event
from lipcast.memory.slots import SlotPool, Streamed
from lipcast.planning.plan import Placement

ByteRange = tuple[int, int]
"""(first byte, number of bytes)."""


class BufferLayout(Protocol):
    """Layout of a layer in one buffer. Layouts of one size are taken to be equal."""

    @property
    def num_bytes(self) -> int:
        """Size of one layer."""

    def view(self, buffer: Tensor) -> Any:
        """Return the planes of one layer, as views of its bytes (uint8, 1-D)."""


Convert = Callable[[Any, Any, Any, Any], None]
"""`convert(old_layout, old_planes, new_layout, new_planes)` fills the new planes on the device."""


@dataclass(frozen=True, slots=True)
class BufferAllocator:
    """Arenas that buffers are allocated from, and the parts they are counted under."""

    device: Arena
    host: Arena
    copier: Copier
    device_part: str
    host_part: str

    def at(self, where: Placement) -> tuple[Arena, str]:
        """Return the arena and the part of a placement."""
        if where == "resident":
            return self.device, self.device_part
        return self.host, self.host_part


@dataclass(slots=True, eq=False)
class _Layer:
    where: Placement
    layout: BufferLayout
    home: Tensor
    planes: Any
    is_written: bool = False
    on_host: Event = None
    """End of the last copy to the host."""

    @property
    def events(self) -> list[Event]:
        return [] if self.on_host is None else [self.on_host]


@dataclass(slots=True, eq=False)
class _Visit:
    """A layer's last way through a slot, and the bytes that its copy left out and nobody has written yet."""

    item: Streamed
    left_out: frozenset[ByteRange]


class LayerBuffers:
    """Buffers of equal size, one per layer. `planes(layer)` is valid until another layer is asked for."""

    def __init__(
        self,
        layout: BufferLayout,
        placements: Sequence[Placement],
        *,
        allocator: BufferAllocator,
    ) -> None:
        """Allocate all layers or none. Raises torch.OutOfMemoryError."""
        self.num_layers = len(placements)
        self._layout, self._allocator = layout, allocator
        self._layers: list[_Layer] = []
        self._views = [partial(self._view_slot, layer) for layer in range(self.num_layers)]
        self._visits: dict[int, _Visit] = {}
        self._pool: SlotPool | None = None
        self._following = self
        self._overwritten: frozenset[ByteRange] = frozenset()
        self._overwritten_next: frozenset[ByteRange] = frozenset()
        try:
            for where in placements:
                arena, part = allocator.at(where)
                home = arena.allocate(part, layout.num_bytes)
                self._layers.append(_Layer(where, layout, home, layout.view(home)))
        except BaseException:
            self.release()
            raise

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers, wherever they are."""
        return sum(layer.layout.num_bytes for layer in self._layers)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer."""
        return self._layout.num_bytes

    def pass_through(self, pool: SlotPool | None, following: LayerBuffers) -> None:
        """Stream through `pool`. After the last layer, prefetch the first one of `following`."""
        self._pool, self._following = pool, following
        self._visits = {}

    def planes(
        self,
        layer: int,
        *,
        overwritten: Iterable[ByteRange] = (),
        overwritten_next: Iterable[ByteRange] = (),
    ) -> Any:
        """Return the view of a layer on the device, for the computation enqueued from now on.

        The caller fills `overwritten` before anything reads it, and does the same in the layers that follow;
        `overwritten_next` is what the next pass over the layers will fill, as far as that is known.
        """
        if self._layers[layer].where == "resident":
            return self._layers[layer].planes
        assert self._pool is not None, "streamed layers pass through slots"
        filled = frozenset(overwritten)
        planes = self._pool.acquire(self._visit(layer, filled).item)
        if filled:
            self._overwritten, self._overwritten_next = filled, frozenset(overwritten_next)
        if (following := self._after(layer)) is not None:
            self._pool.prefetch([following])
        return planes

    def write_back(self, index: int, ranges: Iterable[ByteRange]) -> None:
        """Copy these bytes of the layer asked for last, which have changed, back to its home."""
        layer = self._layers[index]
        layer.is_written = True
        if layer.where == "resident":
            return
        assert self._pool is not None
        copier, slot = self._allocator.copier, self._pool.current_buffer
        for first, count in ranges:
            target, source = layer.home[first : first + count], slot[first : first + count]
            layer.on_host = copier.store(target, source, after=[copier.here(), *layer.events])
            self._pool.copied_out(layer.on_host)
        self._visits[index].left_out -= frozenset(ranges)

    def first_streamed(self) -> int | None:
        """Return the first layer that passes through slots, if any does."""
        return next(self._streamed(range(self.num_layers)), None)

    def _after(self, layer: int) -> Streamed | None:
        """Return the streamed layer that is needed next."""
        found = next(self._streamed(range(layer + 1, self.num_layers)), None)
        if found is not None:
            return self._visit(found, self._overwritten).item
        following, first = self._following, self._following.first_streamed()
        if first is None or (following is self and first == layer):
            return None  # in use: it stays in its slot
        return following._visit(first, following._overwritten_next).item

    def _streamed(self, layers: range) -> Iterator[int]:
        return (i for i in layers if self._layers[i].where != "resident")

    def _visit(self, index: int, overwritten: frozenset[ByteRange]) -> _Visit:
        """Return the layer's way through a slot: the last one, if what it left out will be overwritten."""
        assert self._pool is not None
        last = self._visits.get(index)
        if last is None or not self._pool.holds(last.item) or not last.left_out <= overwritten:
            fetch = partial(self._fetch, index, overwritten)
            last = _Visit(Streamed(fetch, self._views[index]), overwritten)
            self._visits[index] = last
        return last

    def _fetch(
        self, index: int, left_out: frozenset[ByteRange], slot: Tensor, after: Sequence[Event]
    ) -> Event:
        layer = self._layers[index]
        # Nothing to copy if never written; the slot is still to be waited for.
        count = layer.layout.num_bytes if layer.is_written else 0
        events = [*after, *layer.events]
        for first, last in _rest(count, left_out):
            source, target = layer.home[first:last], slot[first:last]
            events = [self._allocator.copier.fetch(target, source, after=events)]
        return events[0]

    def _view_slot(self, index: int, slot: Tensor) -> Any:
        layout = self._layers[index].layout
        return layout.view(slot[: layout.num_bytes])

    # Moving

    def apply_plan(
        self,
        placements: Sequence[Placement],
        layout: BufferLayout | None = None,
        convert: Convert | None = None,
    ) -> None:
        """Move layers, and convert them to another layout if one is given.

        No layer passes through slots afterwards; call `pass_through` again. Raises
        torch.OutOfMemoryError if there is not enough memory. Every layer is then whole, in its old or
        its new place and layout, nothing else is allocated, and the call may be repeated with these
        arguments or others.
        """
        self.pass_through(None, self)
        wanted = layout or self._layout
        for index in sorted(range(self.num_layers), key=lambda i: placements[i] == "resident"):
            layer = self._layers[index]
            if layer.layout.num_bytes != wanted.num_bytes:
                assert convert is not None, "another layout needs a conversion"
                self._rewrite(layer, placements[index], wanted, convert)
            elif layer.where != placements[index]:
                self._move(layer, placements[index])
        self._layout = wanted

    def release(self) -> None:
        """Free all layers. Further calls do nothing."""
        layers, self._layers = self._layers, []
        with ExitStack() as stack:  # frees every layer, even if waiting for one of them raises
            for layer in layers:
                stack.callback(self._allocator.at(layer.where)[0].release, layer.home)
                stack.callback(self._finish_copies, layer)

    def _move(self, layer: _Layer, where: Placement) -> None:
        copier = self._allocator.copier
        arena, part = self._allocator.at(where)
        with arena.allocated(part, layer.layout.num_bytes) as new:
            if layer.is_written:
                begin = copier.store if where != "resident" else copier.fetch
                copier.finish(begin(new, layer.home, after=[copier.here(), *layer.events]))
        self._relocate(layer, where, new, layer.layout)

    def _rewrite(
        self, layer: _Layer, where: Placement, layout: BufferLayout, convert: Convert
    ) -> None:
        arena, part = self._allocator.at(where)
        with arena.allocated(part, layout.num_bytes) as new:
            if layer.is_written and where == "resident":
                self._convert(layer, new, layout, convert)
            elif layer.is_written:
                self._convert_to_host(layer, new, layout, convert)
        self._relocate(layer, where, new, layout)

    def _convert_to_host(
        self, layer: _Layer, target: Tensor, layout: BufferLayout, convert: Convert
    ) -> None:
        allocator, copier = self._allocator, self._allocator.copier
        with allocator.device.scratch(allocator.device_part, layout.num_bytes) as new:
            self._convert(layer, new, layout, convert)
            copier.finish(copier.store(target, new, after=[copier.here()]))

    def _convert(
        self, layer: _Layer, target: Tensor, layout: BufferLayout, convert: Convert
    ) -> None:
        """Fill `target`, on the device, with the layer in another layout."""
        with self._on_device(layer) as old:
            convert(layer.layout, layer.layout.view(old), layout, layout.view(target))

    @contextmanager
    def _on_device(self, layer: _Layer) -> Iterator[Tensor]:
        """Give the layer's bytes on the device: its home, or a copy."""
        if layer.where == "resident":
            yield layer.home
            return
        allocator, copier = self._allocator, self._allocator.copier
        with allocator.device.scratch(allocator.device_part, layer.layout.num_bytes) as copy:
            copier.finish(copier.fetch(copy, layer.home, after=[copier.here(), *layer.events]))
            yield copy

    def _relocate(
        self, layer: _Layer, where: Placement, home: Tensor, layout: BufferLayout
    ) -> None:
        """Make `home` the layer's place, and free the old one."""
        self._finish_copies(layer)
        self._allocator.at(layer.where)[0].release(layer.home)
        layer.where, layer.home, layer.layout = where, home, layout
        layer.planes = layout.view(home)

    def _finish_copies(self, layer: _Layer) -> None:
        for event in layer.events:
            self._allocator.copier.finish(event)
        layer.on_host = None


def _rest(count: int, left_out: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """Yield (first, end) of each run of bytes before `count` that is not left out; one at least."""
    begin, found = 0, False
    for first, length in sorted(left_out):
        if begin < min(first, count):
            yield begin, min(first, count)
            found = True
        begin = first + length
    if begin < count or not found:
        yield min(begin, count), count
