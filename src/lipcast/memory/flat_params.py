"""Many tensors in one buffer, so that one copy moves all of them.

Inputs: names, shapes and dtypes. Outputs: offsets, and typed views of any buffer of the right size. Every
tensor begins at a multiple of 256 bytes, as the planner assumes.
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
    """One tensor of a group: its offset, and how its bytes are read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ParamsLayout:
    """Tensors of a buffer, in order."""

    entries: tuple[Entry, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Size, torch.dtype]]) -> Self:
        """Lay out tensors, given as (name, shape, dtype), one after the other."""
        entries, offset = [], 0
        for name, shape, dtype in tensors:
            num_bytes = shape.numel() * dtype.itemsize
            entries.append(Entry(name, tuple(shape), dtype, offset, num_bytes))
            offset += -(-num_bytes // PACK_ALIGN) * PACK_ALIGN
        return cls(tuple(entries), offset)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the tensors that lie in `buffer` (uint8, at least `num_bytes`), by name."""
        assert buffer.dtype == torch.uint8 and buffer.numel() >= self.num_bytes
        return {
            e.name: buffer[e.offset : e.offset + e.num_bytes].view(e.dtype).view(e.shape)
            for e in self.entries
        }
