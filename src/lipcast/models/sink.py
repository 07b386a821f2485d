"""The sink: keys and values of the condition tokens, attended by every block.

Prefilled once per reference. Only the reference moves in time, so its keys are kept unrotated and are placed
for each block; the motion's keys are rotated already. Where a layer lives is the business of its storage.

Legend: L layers, S reference tokens, M motion tokens, T tokens (S + M), N heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lipcast.models.rope import RotaryTable


@dataclass(frozen=True, slots=True)
class SinkPlanes:
    """One layer of a sink. Values: [reference | motion]."""

    ref_keys_SNd: Tensor
    motion_keys_MNd: Tensor
    values_TNd: Tensor


@dataclass(frozen=True, slots=True)
class SinkLayout:
    """Layout of one layer of a sink in one buffer of bytes."""

    num_ref: int
    num_motion: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_tokens(self) -> int:
        return self.num_ref + self.num_motion

    @property
    def num_bytes(self) -> int:
        """One layer: as many keys as values."""
        return 2 * self.num_tokens * self.num_heads * self.head_dim * self.dtype.itemsize

    @property
    def placed_bytes(self) -> int:
        """One layer of the reference's keys."""
        return self.num_ref * self.num_heads * self.head_dim * self.dtype.itemsize

    def view(self, buffer: Tensor) -> SinkPlanes:
        """Return the planes of one layer, as views of its bytes (uint8, 1-D)."""
        tokens_XNd = self._tokens(buffer)
        lengths = [self.num_ref, self.num_motion, self.num_tokens]
        return SinkPlanes(*tokens_XNd.split(lengths))

    def placed_view(self, buffer: Tensor) -> Tensor:
        """Return the placed reference keys [L, S, N, d] in a buffer of L times `placed_bytes`."""
        placed_LSNd: Tensor = self._tokens(buffer).unflatten(0, (-1, self.num_ref))
        return placed_LSNd

    def _tokens(self, buffer: Tensor) -> Tensor:
        assert buffer.dtype == torch.uint8
        return buffer.view(self.dtype).view(-1, self.num_heads, self.head_dim)


class SinkStorage(Protocol):
    """Storage of the layers of a sink."""

    def planes(self, layer: int) -> SinkPlanes:
        """Return the layer, ready to be read and written; valid until another layer is asked for."""

    def mark_dirty(self, layer: int) -> None:
        """Mark the layer asked for last as filled; a streaming storage writes it back."""


class ResidentSink:
    """Every layer has its own buffer and stays there."""

    def __init__(
        self, layout: SinkLayout, *, num_layers: int, allocate: Callable[[int], Tensor]
    ) -> None:
        self._planes = [layout.view(allocate(layout.num_bytes)) for _ in range(num_layers)]

    def planes(self, layer: int) -> SinkPlanes:
        return self._planes[layer]

    def mark_dirty(self, layer: int) -> None:
        """Do nothing: the layer is where it belongs."""


class Sink:
    """Keys and values of the condition tokens of one reference."""

    def __init__(self, layout: SinkLayout, storage: SinkStorage, *, num_layers: int) -> None:
        self.layout, self.num_layers = layout, num_layers
        self._storage = storage

    @classmethod
    def allocate(cls, layout: SinkLayout, *, num_layers: int, device: torch.device) -> Sink:
        """Return an empty sink that stays on `device`."""

        def allocate(num_bytes: int) -> Tensor:
            return torch.empty(num_bytes, dtype=torch.uint8, device=device)

        storage = ResidentSink(layout, num_layers=num_layers, allocate=allocate)
        return cls(layout, storage, num_layers=num_layers)

    def planes(self, layer: int) -> SinkPlanes:
        """Return what is kept of a layer; valid until another layer is asked for."""
        return self._storage.planes(layer)

    def keep(self, layer: int, kept: SinkPlanes) -> None:
        """Fill a layer: reference keys unrotated, motion keys rotated."""
        planes = self._storage.planes(layer)
        planes.ref_keys_SNd.copy_(kept.ref_keys_SNd)
        planes.motion_keys_MNd.copy_(kept.motion_keys_MNd)
        planes.values_TNd.copy_(kept.values_TNd)
        self._storage.mark_dirty(layer)

    def place(self, table: RotaryTable, buffer_LSNd: Tensor | None) -> PlacedSink:
        """Return the sink with its reference at the positions of `table`, for one block.

        The rotated keys of all layers are written into `buffer_LSNd`; without it they are rotated
        anew wherever they are read, which costs time and no memory.
        """
        if buffer_LSNd is not None:
            for layer, placed_SNd in enumerate(buffer_LSNd):
                placed_SNd.copy_(table.apply(self.planes(layer).ref_keys_SNd))
        return PlacedSink(self, table, buffer_LSNd)


@dataclass(frozen=True, slots=True)
class PlacedSink:
    """A sink as one block sees it."""

    sink: Sink
    table: RotaryTable
    ref_keys_LSNd: Tensor | None

    @property
    def num_tokens(self) -> int:
        return self.sink.layout.num_tokens

    def planes(self, layer: int) -> SinkPlanes:
        """Return a layer with the reference's keys at their positions."""
        planes = self.sink.planes(layer)
        if self.ref_keys_LSNd is None:
            return replace(planes, ref_keys_SNd=self.table.apply(planes.ref_keys_SNd))
        return replace(planes, ref_keys_SNd=self.ref_keys_LSNd[layer])

    def read_into(self, layer: int, k_TNd: Tensor, v_TNd: Tensor) -> None:
        """Put the keys [reference | motion] and the values into k_TNd and v_TNd."""
        planes, num_ref = self.planes(layer), self.sink.layout.num_ref
        k_TNd[:num_ref] = planes.ref_keys_SNd
        k_TNd[num_ref:] = planes.motion_keys_MNd
        v_TNd.copy_(planes.values_TNd)
