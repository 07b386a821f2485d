"""KV cache of one (session, step): a ring of keys and values over latent frames.

It holds keys and values of the last `window` latent frames, one position per latent frame, in
every layer. Frame g lives at position (g - start) mod window, so a window need not be a multiple of a
block. Keys are stored rotated. Invariant: writes of one layer come in order of frames. Where a layer
lives is the business of its storage; how numbers are stored, of its codec.

Legend: L layers, W window (latent frames), F some latent frames, S tokens per latent frame, T tokens,
N heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcast.models.kv_codec import KVCodec

Allocate = Callable[[int], Tensor]
"""Bytes to an uninitialised uint8 tensor of so many."""
Positions = tuple[int, int]
"""(first position, number of positions)."""


@dataclass(frozen=True, slots=True)
class RingPlanes:
    """One layer of a ring as its codec sees it: planes of the keys and of the values, [W, S, ...]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def part(self, first: int, count: int) -> RingPlanes:
        """Return some of the positions."""
        some = slice(first, first + count)
        keys, values = ([plane[some] for plane in each] for each in (self.keys, self.values))
        return RingPlanes(tuple(keys), tuple(values))


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Layout of one layer of a ring in one buffer of bytes.

    Plane after plane, each the keys' and then the values', so that keys of all positions that are stored
    as they are can be attended to where they lie. Wide items come first, which keeps every item aligned
    without padding.
    """

    codec: KVCodec
    window: int
    tokens_per_frame: int

    @property
    def num_bytes(self) -> int:
        """One layer."""
        return 2 * sum(self._plane_bytes)

    @property
    def _plane_bytes(self) -> list[int]:
        """Of every plane, the keys' part."""
        tokens = self.window * self.tokens_per_frame
        return [tokens * plane.num_bytes for plane in self.codec.planes]

    def view(self, buffer: Tensor) -> RingPlanes:
        """Return the planes of one layer, as views of its bytes (uint8, 1-D)."""
        assert buffer.dtype == torch.uint8 and buffer.numel() == self.num_bytes
        parts = buffer.split([size for size in self._plane_bytes for _ in range(2)])
        keys, values = (self._viewed(some) for some in (parts[0::2], parts[1::2]))
        return RingPlanes(keys, values)

    def byte_ranges(self, positions: Positions) -> Iterator[tuple[int, int]]:
        """Yield (first byte, number of bytes) of these positions in every plane."""
        first, count = positions
        begin = 0
        for size in (size for size in self._plane_bytes for _ in range(2)):
            each = size // self.window
            yield begin + first * each, count * each
            begin += size

    def _viewed(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shape = (self.window, self.tokens_per_frame)
        return tuple(
            part.view(plane.dtype).view(*shape, *plane.shape)
            for part, plane in zip(parts, self.codec.planes, strict=True)
        )


class RingStorage(Protocol):
    """Storage of the layers of one ring."""

    def planes(
        self,
        layer: int,
        *,
        overwritten: Sequence[Positions] = (),
        overwritten_next: Sequence[Positions] = (),
    ) -> RingPlanes:
        """Return the layer, ready to be read and written; valid until another layer is asked for.

        Positions of `overwritten` hold anything: the caller fills them, in this layer and those after it,
        before they are read. `overwritten_next` are those of the next pass, probably.
        """

    def mark_dirty(self, layer: int, positions: Sequence[Positions]) -> None:
        """Mark positions of the layer asked for last as changed; a streaming storage writes them back."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers, wherever they are."""


class ResidentRing:
    """Every layer has its own buffer and stays there."""

    def __init__(self, layout: RingLayout, *, num_layers: int, allocate: Allocate) -> None:
        self._planes = [layout.view(allocate(layout.num_bytes)) for _ in range(num_layers)]
        self.num_bytes = num_layers * layout.num_bytes

    def planes(self, layer: int, **_: Sequence[Positions]) -> RingPlanes:
        return self._planes[layer]

    def mark_dirty(self, layer: int, positions: Sequence[Positions]) -> None:
        """Do nothing: the layer is where it belongs."""


class KVRing:
    """Keys and values of one denoising step of one session."""

    def __init__(self, layout: RingLayout, storage: RingStorage, *, start_frame: int = 0) -> None:
        """`start_frame` is the first latent frame that will be written."""
        self._layout, self._storage = layout, storage
        self._start_frame = start_frame

    @classmethod
    def allocate(
        cls, layout: RingLayout, *, num_layers: int, device: torch.device, start_frame: int = 0
    ) -> KVRing:
        """Return an empty ring that stays on `device`."""

        def allocate(num_bytes: int) -> Tensor:
            return torch.empty(num_bytes, dtype=torch.uint8, device=device)

        storage = ResidentRing(layout, num_layers=num_layers, allocate=allocate)
        return cls(layout, storage, start_frame=start_frame)

    @property
    def window(self) -> int:
        return self._layout.window

    @property
    def num_bytes(self) -> int:
        return self._storage.num_bytes

    @property
    def codec(self) -> KVCodec:
        return self._layout.codec

    def num_frames(self, x_TNd: Tensor) -> int:
        """Return how many latent frames these tokens are."""
        return x_TNd.shape[0] // self._layout.tokens_per_frame

    def write(self, layer: int, first_frame: int, k_TNd: Tensor, v_TNd: Tensor) -> None:
        """Store the frames from `first_frame` on in place of the oldest ones."""
        tokens, codec = self._layout.tokens_per_frame, self._layout.codec
        new_FS = [
            plane
            for x_TNd in (k_TNd, v_TNd)
            for plane in codec.encode(x_TNd.unflatten(0, (-1, tokens)))
        ]
        for frames, planes in self.writable(layer, first_frame, self.num_frames(k_TNd)):
            for stored, plane_FS in zip((*planes.keys, *planes.values), new_FS, strict=True):
                stored.copy_(plane_FS[frames])

    def writable(
        self, layer: int, first_frame: int, num_frames: int
    ) -> Iterator[tuple[slice, RingPlanes]]:
        """Yield each run of the frames from `first_frame` on, and the planes to be filled with it.

        Once all are taken, the storage is told that they have changed.
        """
        runs = self._runs(first_frame, num_frames)
        positions = [run[1:] for run in runs]
        planes = self._storage.planes(
            layer,
            overwritten=positions,
            overwritten_next=[run[1:] for run in self._runs(first_frame + num_frames, num_frames)],
        )
        for begin, position, count in runs:
            yield slice(begin, begin + count), planes.part(position, count)
        self._storage.mark_dirty(layer, positions)

    def filled(self, layer: int, next_frame: int) -> RingPlanes:
        """Return what is kept, `next_frame` being the first frame not written yet."""
        return self._storage.planes(layer).part(0, self._num_filled(next_frame))

    def num_tokens(self, next_frame: int) -> int:
        """Return the number of tokens kept, `next_frame` being the first frame not written yet."""
        return self._num_filled(next_frame) * self._layout.tokens_per_frame

    def span(self, first_frame: int, num_frames: int) -> tuple[int, int]:
        """Return the position that new frames begin at, and how many frames are kept with them."""
        position = self._runs(first_frame, num_frames)[0][1]
        return position, self._num_filled(first_frame + num_frames)

    def read_into(self, layer: int, next_frame: int, k_TNd: Tensor, v_TNd: Tensor) -> None:
        """Put every token kept into k_TNd and v_TNd, of `num_tokens(next_frame)` tokens each."""
        filled = self.filled(layer, next_frame)
        for stored, out_TNd in ((filled.keys, k_TNd), (filled.values, v_TNd)):
            self.codec.decode_into(stored, out_TNd.unflatten(0, stored[0].shape[:2]))

    def _num_filled(self, next_frame: int) -> int:
        return min(self.window, next_frame - self._start_frame)

    def _runs(self, first_frame: int, num_frames: int) -> list[tuple[int, int, int]]:
        """Return (index, position, count) of each run of new frames without a wrap."""
        assert num_frames <= self.window, "a block does not fit the window"
        start = first_frame - self._start_frame
        assert start >= 0, "a frame before the ring's first"
        position = start % self.window
        whole = min(num_frames, self.window - position)
        runs = [(0, position, whole)]
        if whole < num_frames:
            runs.append((whole, 0, num_frames - whole))
        return runs
