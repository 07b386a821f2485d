"""A device that keeps clocks instead of streams, and records every access that is not ordered.

Computation, copies to the device and copies to the host are three streams. What a stream is known to follow
is a vector clock: how many operations of each stream have ended. An event is such a clock; so is what the
host knows to have ended. Every tensor operation of the test is taken for one kernel of the computation. Each
buffer of the arenas remembers its last reads and writes, and an access is ordered if it is known to follow

* for a read, all earlier writes; for a write, all earlier reads and writes;
* for new device memory, all computation enqueued so far: a caching allocator hands out blocks that kernels
  still use, since later kernels follow them anyway;
* for freed memory, all copies from and to it.

Values are right at once. That later copies bring the same values is `LateCopier`'s matter.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fake_device import CPU
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipcast.memory.arena import Arena, DeviceMaker
from lipcast.memory.device_context import DeviceContext

Clock = tuple[int, int, int]
"""Operations that have ended: of the computation, of copies to the device, of copies to the host."""
START: Clock = (0, 0, 0)
COMPUTE, TO_DEVICE, TO_HOST = range(3)


def latest(*clocks: Clock) -> Clock:
    first, second, third = zip(*clocks, strict=True)
    return max(first), max(second), max(third)


def at(clock: Clock, stream: int, count: int) -> Clock:
    values = list(clock)
    values[stream] = count
    return values[0], values[1], values[2]


class _Buffer:
    """Last accesses to one buffer of an arena, by stream."""

    def __init__(self, written: Clock, *, is_device: bool) -> None:
        self.written, self.read, self.is_device = written, START, is_device

    def follows(self, known: Clock, *, is_write: bool) -> bool:
        """Return whether an access that is known to follow `known` is ordered."""
        needed = latest(self.written, self.read) if is_write else self.written
        return latest(known, needed) == known


class ClockDevice(TorchDispatchMode):
    """Two arenas and a copier. Computation is what runs in `with device:`."""

    def __init__(self) -> None:
        super().__init__()
        self.races: Counter[str] = Counter()
        """Accesses that were not ordered: kind and callers."""
        self._enqueued = START
        self._streams = [START, START, START]
        """What the last operation of each stream is known to follow, itself included."""
        self._host = START
        self._buffers: dict[int, _Buffer] = {}
        self._lock = threading.RLock()
        self._is_copying = threading.local()
        self.vram = Arena("device", _ClockMaker(self, is_device=True))
        self.ram = Arena("host", _ClockMaker(self, is_device=False))
        self.context = DeviceContext(CPU, self.vram, self.ram, self)

    # The copier

    def here(self) -> Clock:
        return latest(self._streams[COMPUTE], self._host)

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Clock]) -> Clock:
        return self._copy(TO_DEVICE, target, source, after)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Clock]) -> Clock:
        return self._copy(TO_HOST, target, source, after)

    def wait(self, event: Clock) -> None:
        self._streams[COMPUTE] = latest(self._streams[COMPUTE], event)

    def finish(self, event: Clock) -> None:
        self._host = latest(self._host, event)

    def _copy(self, stream: int, target: Tensor, source: Tensor, after: Iterable[Clock]) -> Clock:
        accesses = [(source, False), (target, True)] if target.numel() else []
        with self._lock:
            event = self._enqueue(stream, accesses, after, ("fetch", "store")[stream - 1])
        with self._aside():
            target.copy_(source)
        return event

    # Computation

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view and not getattr(self._is_copying, "value", False):
            accesses = list(accesses_of(func, args, kwargs))
            with self._lock:
                self._compute([a for a in accesses if self._is_on_device(a[0])], func)
                self._touch([a for a in accesses if not self._is_on_device(a[0])], func)
        return result

    def _compute(self, accesses: list[tuple[Tensor, bool]], func: Callable[..., Any]) -> None:
        self._enqueue(COMPUTE, accesses, (), str(func))

    def _touch(self, accesses: list[tuple[Tensor, bool]], func: Callable[..., Any]) -> None:
        """The host itself reads and writes host memory."""
        for tensor, is_write in accesses:
            buffer = self._buffers.get(address_of(tensor))
            if buffer is not None and not buffer.follows(self._host, is_write=is_write):
                self._report(f"host {func}")

    def _is_on_device(self, tensor: Tensor) -> bool:
        buffer = self._buffers.get(address_of(tensor))
        return buffer is not None and buffer.is_device

    # Clocks

    def _enqueue(
        self,
        stream: int,
        accesses: Iterable[tuple[Tensor, bool]],
        after: Iterable[Clock],
        what: str,
    ) -> Clock:
        known = latest(self._streams[stream], self._host, *after)
        number = self._enqueued[stream] + 1
        for tensor, is_write in accesses:
            buffer = self._buffers.get(address_of(tensor))
            if buffer is None:
                continue
            if not buffer.follows(known, is_write=is_write):
                self._report(f"{what} {'writes' if is_write else 'reads'}")
            if is_write:
                buffer.written = at(buffer.written, stream, number)
            else:
                buffer.read = at(buffer.read, stream, number)
        self._enqueued = at(self._enqueued, stream, number)
        self._streams[stream] = at(known, stream, number)
        return self._streams[stream]

    def made(self, tensor: Tensor, *, is_device: bool) -> None:
        """Note a new buffer: what is enqueued may still use the memory of one on the device."""
        written = at(START, COMPUTE, self._enqueued[COMPUTE]) if is_device else START
        self._buffers[address_of(tensor)] = _Buffer(written, is_device=is_device)

    def dropped(self, tensor: Tensor) -> None:
        """Note that a buffer is freed. Computation follows computation; all else must have ended."""
        buffer = self._buffers.pop(address_of(tensor))
        known = self.here() if buffer.is_device else self._host
        if not buffer.follows(at(known, COMPUTE, self._enqueued[COMPUTE]), is_write=True):
            self._report("free")

    def _report(self, what: str) -> None:
        callers = [f.name for f in traceback.extract_stack() if "/lipcast/" in f.filename]
        self.races[" < ".join([what, *callers[-4:][::-1]])] += 1

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """The copy itself is no computation."""
        self._is_copying.value = True
        try:
            yield
        finally:
            self._is_copying.value = False


class _ClockMaker(DeviceMaker):
    def __init__(self, device: ClockDevice, *, is_device: bool) -> None:
        super().__init__(CPU)
        self._clocks, self._is_device = device, is_device

    def make(self, num_bytes: int) -> Tensor:
        buffer = super().make(num_bytes)
        self._clocks.made(buffer, is_device=self._is_device)
        return buffer

    def drop(self, buffer: Tensor) -> None:
        self._clocks.dropped(buffer)


def address_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def accesses_of(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[Tensor, bool]]:
    """(tensor, whether it is written) of every tensor argument that has memory."""
    named = {a.name: a for a in func._schema.arguments}
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(named[name], value) for name, value in kwargs.items() if name in named]
    for argument, value in given:
        is_write = argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                yield leaf, is_write
