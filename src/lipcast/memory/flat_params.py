"""Many tensors in one buffer, so that one copy moves all of them.

Inputs: names, shapes and dtypes. Outputs: offsets, and typed views of any buffer of the right size. Every
tensor begins at a multiple of 256 bytes, as the planner assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
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
    """Tensors of a buffer."""

    entries: tuple[Entry, ...]
    num_bytes: int

    @classmethod
    def of(
        cls,
        tensors: Iterable[tuple[str, torch.Size, torch.dtype]],
        *,
        group: Callable[[str], str] = str,
    ) -> Self:
        """Lay out tensors, given as (name, shape, dtype), one after the other.

        Those with the same `group` of their names lie side by side, where the first of them is due.
        """
        groups: dict[str, list[Entry]] = {}
        given = [_entry(*tensor) for tensor in tensors]
        for entry in given:
            groups.setdefault(group(entry.name), []).append(entry)
        offsets, end = {}, 0
        for entry in chain.from_iterable(groups.values()):
            offsets[entry.name] = end
            end += -(-entry.num_bytes // PACK_ALIGN) * PACK_ALIGN
        return cls(tuple(replace(entry, offset=offsets[entry.name]) for entry in given), end)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the tensors that lie in `buffer` (uint8, at least `num_bytes`), by name."""
        assert buffer.dtype == torch.uint8 and buffer.numel() >= self.num_bytes
        return {
            e.name: buffer[e.offset : e.offset + e.num_bytes].view(e.dtype).view(e.shape)
            for e in self.entries
        }


def _entry(name: str, shape: torch.Size, dtype: torch.dtype) -> Entry:
    return Entry(name, tuple(shape), dtype, 0, shape.numel() * dtype.itemsize)
