"""Memory taken in named parts, counted, and refused above a budget.

Input: sizes in bytes and the planner's name of the part. Output: byte buffers. State: what is taken, by
part. Invariant: what is taken never exceeds the budget; a refusal takes nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import torch
from torch import Tensor

from lipcast.planning.hardware import format_bytes


class BufferMaker(Protocol):
    """How an arena gets its memory."""

    def make(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes]; raises torch.OutOfMemoryError where there is none."""

    def drop(self, buffer: Tensor) -> None:
        """Called when a buffer is given back."""


class DeviceMaker:
    """Plain memory of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def make(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def drop(self, buffer: Tensor) -> None:
        """Freed with its last reference."""
        del buffer


class Arena:
    """Buffers of one kind of memory, counted by part.

    `budget_bytes` (None: no bound) is what all parts together may take; beyond it `allocate` raises
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
        return sum(self._parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, parts without any left out."""
        return {part: count for part, count in self._parts.items() if count}

    def allocate(self, part: str, num_bytes: int) -> Tensor:
        """A buffer uint8 [num_bytes], uninitialised. Raises torch.OutOfMemoryError."""
        total = self.used_bytes + num_bytes
        if self.budget_bytes is not None and total > self.budget_bytes:
            raise torch.OutOfMemoryError(
                f"{self.name}: {part} wants {format_bytes(num_bytes)} beside "
                f"{format_bytes(self.used_bytes)}, and the budget is {format_bytes(self.budget_bytes)}"
            )
        with torch.inference_mode(False):  # written to from inside and outside inference mode
            buffer = self._maker.make(num_bytes)
        self._taken[id(buffer)] = part, buffer
        self._parts[part] += num_bytes
        self.peak_bytes = max(self.peak_bytes, total)
        return buffer

    def release(self, buffer: Tensor) -> None:
        """Give back what `allocate` gave; views on it must not be used any more."""
        part, taken = self._taken.pop(id(buffer))
        self._parts[part] -= taken.nbytes
        self._maker.drop(taken)
