"""Many tensors in one buffer, so that they move in one copy.

Input: names, shapes and dtypes. Output: offsets, and typed views on any buffer of the right size. Every
tensor begins at a multiple of 256 bytes; the planner counts in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lipcast.planning.sizes import PACK_ALIGN


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a pack: where it begins and how its bytes are read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ParamsLayout:
    """The tensors of a buffer, in order."""

    entries: tuple[Entry, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Size, torch.dtype]]) -> Self:
        """Lay (name, shape, dtype) out one after the other."""
        entries, offset = [], 0
        for name, shape, dtype in tensors:
            num_bytes = shape.numel() * dtype.itemsize
            entries.append(Entry(name, tuple(shape), dtype, offset, num_bytes))
            offset += -(-num_bytes // PACK_ALIGN) * PACK_ALIGN
        return cls(tuple(entries), offset)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors that lie in `buffer` (uint8, at least `num_bytes`)."""
        assert buffer.dtype == torch.uint8 and buffer.numel() >= self.num_bytes
        return {
            e.name: buffer[e.offset : e.offset + e.num_bytes].view(e.dtype).view(e.shape)
            for e in self.entries
        }
