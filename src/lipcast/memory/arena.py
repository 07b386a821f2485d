"""Memory that is allocated in named parts, counted, and bounded by a budget.

Inputs: sizes in bytes and the planner's name of each part. Outputs: byte buffers. State: the buffers that
are allocated, by part. Invariants: `used_bytes` never exceeds the budget, and an allocation that is refused
takes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from lipcast.config.units import format_bytes
from lipcast.memory.oom import is_out_of_memory


class BufferMaker(Protocol):
    """Source of an arena's memory."""

    def make(self, num_bytes: int) -> Tensor:
        """Return a buffer, uint8 [num_bytes]. Raise an out-of-memory error if there is none."""

    def drop(self, buffer: Tensor) -> None:
        """Free a buffer."""


class DeviceMaker:
    """Allocates ordinary memory of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def make(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def drop(self, buffer: Tensor) -> None:
        """Do nothing: the buffer is freed with its last reference."""
        del buffer


class Arena:
    """Buffers of one kind of memory, counted by part.

    `budget_bytes` bounds the sum of all parts (None: no bound). Beyond it `allocate` raises
    torch.OutOfMemoryError, as the device itself would.
    """

    def __init__(self, name: str, maker: BufferMaker, *, budget_bytes: int | None = None) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self._maker = maker
        self._taken: dict[int, tuple[str, Tensor]] = {}
        self._parts: Counter[str] = Counter()
        self.peak_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of all buffers that are allocated now."""
        return sum(self._parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, without the parts that are empty."""
        return {part: count for part, count in self._parts.items() if count}

    def allocate(self, part: str, num_bytes: int) -> Tensor:
        """Return an uninitialised buffer, uint8 [num_bytes]. Raises torch.OutOfMemoryError."""
        total = self.used_bytes + num_bytes
        if self.budget_bytes is not None and total > self.budget_bytes:
            raise torch.OutOfMemoryError(
                f"cannot allocate {format_bytes(num_bytes)} of {self.name} for {part}: "
                f"{format_bytes(self.used_bytes)} of the budget of "
                f"{format_bytes(self.budget_bytes)} are in use"
            )
        buffer = self._make(part, num_bytes)
        self._taken[id(buffer)] = part, buffer
        self._parts[part] += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return buffer

    def release(self, buffer: Tensor) -> None:
        """Free a buffer that `allocate` returned. Its views must not be used any more."""
        part, taken = self._taken.pop(id(buffer))
        self._parts[part] -= taken.nbytes
        self._maker.drop(taken)

    @contextmanager
    def allocated(self, part: str, num_bytes: int) -> Iterator[Tensor]:
        """Allocate a buffer that the caller keeps unless the block raises."""
        buffer = self.allocate(part, num_bytes)
        try:
            yield buffer
        except BaseException:
            self.release(buffer)
            raise

    @contextmanager
    def scratch(self, part: str, num_bytes: int) -> Iterator[Tensor]:
        """Allocate a buffer for the duration of the block."""
        buffer = self.allocate(part, num_bytes)
        try:
            yield buffer
        finally:
            self.release(buffer)

    def _make(self, part: str, num_bytes: int) -> Tensor:
        try:
            with torch.inference_mode(False):  # written to inside and outside inference mode
                return self._maker.make(num_bytes)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"cannot allocate {format_bytes(num_bytes)} of {self.name} for {part}: {error}"
            ) from error
