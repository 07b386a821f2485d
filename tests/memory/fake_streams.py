"""Streams of a GPU that this machine does not have: they keep clocks, and operations run at once.

Installed in the place of torch.cuda's, `StreamClocks` takes every tensor operation for a kernel of the
current stream. It records what is not ordered: a read that is not known to follow the writes, a write that is
not known to follow the reads and writes, and the use of another stream's memory without `record_stream`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from clock_device import accesses_of, address_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clocks = dict["FakeStream", int]
"""Operations of each stream that have ended."""


def follows(known: Clocks, needed: Clocks) -> bool:
    return all(known.get(stream, 0) >= count for stream, count in needed.items())


class FakeStream:
    """A stream and what its last operation is known to follow."""

    def __init__(self, world: StreamClocks, *, priority: int = 0) -> None:
        self.world, self.priority = world, priority
        self.known: Clocks = {self: 0}

    def learn(self, other: Clocks) -> None:
        for stream, count in other.items():
            self.known[stream] = max(self.known.get(stream, 0), count)

    def wait_stream(self, other: FakeStream) -> None:
        self.learn(other.known)

    def synchronize(self) -> None:
        self.world.host.learn(self.known)

    def record_event(self, event: FakeEvent) -> FakeEvent:
        event.known = dict(self.known)
        return event


class FakeEvent:
    """A point of a stream; the host knows it once it has waited for it."""

    def __init__(self, world: StreamClocks) -> None:
        self._world = world
        self.known: Clocks = {}

    def query(self) -> bool:
        return follows(self._world.host.known, self.known)

    def synchronize(self) -> None:
        self._world.host.learn(self.known)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.query(), "the time is read before it has passed"
        return 1.0


class _Memory:
    """The stream that a tensor's memory was allocated on, and its last accesses."""

    def __init__(self, owner: FakeStream) -> None:
        self.recorded_on = {owner}
        self.written: Clocks = {}
        self.read: Clocks = {}


class StreamClocks(TorchDispatchMode):
    """The computation's stream, the host, and all others that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.races: Counter[str] = Counter()
        self.compute, self.host = FakeStream(self), FakeStream(self)
        self.current = self.compute
        self.made: list[FakeStream] = []
        self.memory: dict[int, _Memory] = {}
        self._kept: list[Tensor] = []
        """Every tensor that was made: an address is then never used again for another."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        empty = torch.empty

        def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
            return empty(*args, **kwargs)

        patch.setattr(torch, "empty", unpinned)
        patch.setattr(torch.cuda, "Stream", self._new_stream)
        patch.setattr(torch.cuda, "Event", lambda **_: FakeEvent(self))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(torch.cuda, "stream", self._on)

    def on_gpu(self, tensor: Tensor) -> GpuTensor:
        """Return a tensor that says it is on the GPU, in memory of the computation's stream."""
        found = tensor.as_subclass(GpuTensor)
        self._kept.append(tensor)
        self.memory.setdefault(address_of(found), _Memory(self.compute))
        return found

    def _new_stream(self, device: object = None, *, priority: int = 0) -> FakeStream:
        self.made.append(FakeStream(self, priority=priority))
        return self.made[-1]

    @contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        stream, inputs = self.current, list(accesses_of(func, args, kwargs or {}))
        stream.learn(self.host.known)
        number = stream.known[stream] + 1
        for tensor, is_write in inputs:
            memory = self.memory.get(address_of(tensor))
            if memory is not None:
                self._check(memory, stream, func, is_write=is_write)
                (memory.written if is_write else memory.read)[stream] = number
        stream.known[stream] = number
        self._note_new(result, {address_of(tensor) for tensor, _ in inputs})
        return result

    def _check(self, memory: _Memory, stream: FakeStream, func: Any, *, is_write: bool) -> None:
        needed = [memory.written, memory.read] if is_write else [memory.written]
        if not all(follows(stream.known, clocks) for clocks in needed):
            self.races[f"{func}: not ordered"] += 1
        if stream not in memory.recorded_on:
            self.races[f"{func}: memory of another stream, not recorded"] += 1

    def _note_new(self, result: Any, known: set[int]) -> None:
        if isinstance(result, Tensor) and address_of(result) not in known:
            self._kept.append(result)
            memory = self.memory[address_of(result)] = _Memory(self.current)
            memory.written[self.current] = self.current.known[self.current]


class GpuTensor(Tensor):
    """An ordinary tensor that says it is on the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def record_stream(self, stream: FakeStream) -> None:  # type: ignore[override]
        stream.world.memory[address_of(self)].recorded_on.add(stream)
