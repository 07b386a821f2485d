"""A streaming decoder that works tile by tile, for pictures whose state and activations are too big.

Input: latents; a decoder; a grid of tiles. Output: what the decoder gives, nearly: a tile does not
see what lies beyond its edge. Where tiles overlap, their pixels are blended linearly, so that no seam
shows. State: that of every tile; while one tile is decoded the others' wait in host memory, if so
wished. A grid of 1 x 1 is the decoder itself, bit for bit.

Shape suffixes: B batch (1), C channels, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lipcast.config.tiles import tile_length, tile_starts
from lipcast.engine.decode import StreamingDecoder
from lipcast.models.vae_blocks import DecoderState


class TiledDecoder:
    """A `StreamingDecoder` made of another one.

    A tile's caches lie in the state under its number: `3/decoder.conv1`. With `park` they are in host
    memory between two uses, pinned where they come from a GPU.
    """

    def __init__(self, vae: StreamingDecoder, tiles: tuple[int, int], *, park: bool) -> None:
        """`tiles`: rows and columns of the grid."""
        self._vae, self._grid, self._park = vae, tiles, park

    def new_decoder_state(self) -> DecoderState:
        return DecoderState()

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        for index, tile in enumerate(self._tiles(latent_BCTHW)):
            tile_state = self._fetch(state, index, latent_BCTHW.device)
            self._vae.prime(tile.cut(latent_BCTHW), tile_state)
            self._put_back(state, index, tile_state)

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        tiles = self._tiles(latent_BCTHW)
        video_BCTHW = torch.empty(0)
        for index, tile in enumerate(tiles):
            tile_state = self._fetch(state, index, latent_BCTHW.device)
            pixels_BCTHW = self._vae.decode_chunk(tile.cut(latent_BCTHW), tile_state)
            self._put_back(state, index, tile_state)
            if len(tiles) == 1:
                return pixels_BCTHW
            factor = pixels_BCTHW.shape[-1] // tile.columns.length
            if index == 0:
                height, width = (n * factor for n in latent_BCTHW.shape[-2:])
                shape = (*pixels_BCTHW.shape[:3], height, width)
                video_BCTHW = pixels_BCTHW.new_zeros(shape, dtype=torch.float32)
            tile.add_to(video_BCTHW, pixels_BCTHW, factor)
        return video_BCTHW

    def whole_state(self, state: DecoderState, latent_size: tuple[int, int]) -> DecoderState:
        """Return the caches of all tiles side by side; where tiles overlap, the last one's."""
        height, width = latent_size
        found = DecoderState()
        for index, tile in enumerate(self._tiles_of(latent_size)):
            tile_state = self._fetch(state, index, torch.device("cpu"))
            for name, cache in tile_state.caches.items():
                scale = cache.shape[-1] // tile.columns.length
                if name not in found.caches:
                    shape = (*cache.shape[:-2], height * scale, width * scale)
                    found.caches[name] = cache.new_empty(shape)
                found.caches[name][tile.pixels(scale)] = cache
        return found

    def adopt_state(self, whole: DecoderState, latent_size: tuple[int, int]) -> DecoderState:
        """Return each tile's part of the caches of the whole picture."""
        found = DecoderState()
        for index, tile in enumerate(self._tiles_of(latent_size)):
            cut = {
                name: cache[tile.pixels(cache.shape[-1] // latent_size[1])].clone()
                for name, cache in whole.caches.items()
            }
            self._put_back(found, index, DecoderState(cut))
        return found

    def _tiles(self, latent_BCTHW: Tensor) -> list[_Tile]:
        height, width = latent_BCTHW.shape[-2:]
        return self._tiles_of((height, width))

    def _tiles_of(self, latent_size: tuple[int, int]) -> list[_Tile]:
        sides = zip(latent_size, self._grid, strict=True)
        rows, columns = (_spans(side, count) for side, count in sides)
        return [_Tile(row, column) for row, column in product(rows, columns)]

    def _fetch(self, state: DecoderState, index: int, device: torch.device) -> DecoderState:
        """Return the state of one tile, on the device."""
        prefix = f"{index}/"
        return DecoderState(
            {
                name.removeprefix(prefix): cache.to(device, non_blocking=True)
                for name, cache in state.caches.items()
                if name.startswith(prefix)
            }
        )

    def _put_back(self, state: DecoderState, index: int, tile_state: DecoderState) -> None:
        """Keep the state of one tile. What was kept before is replaced, not overwritten: whoever
        still holds it can go back to it."""
        for name, cache in tile_state.caches.items():
            state.caches[f"{index}/{name}"] = _parked(cache) if self._park else cache


def _parked(cache: Tensor) -> Tensor:
    """Return a copy in host memory. Copies to and fro follow each other on one stream: nobody waits."""
    # In the same order of axes: a copy in another one is no plain transfer.
    host = torch.empty_like(cache, device="cpu", pin_memory=cache.is_cuda)
    return host.copy_(cache, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Span:
    """A tile along one side, in latent pixels: tile `index` of those that begin at `starts`."""

    starts: tuple[int, ...]
    length: int
    index: int

    @property
    def start(self) -> int:
        return self.starts[self.index]

    def pixels(self, factor: int) -> slice:
        return slice(self.start * factor, (self.start + self.length) * factor)

    def weights(self, factor: int) -> Tensor:
        """Return the blending weight of each pixel of the tile; the weights of all tiles sum to one."""
        ramps = [_ramp(self.starts, self.length, i, factor) for i in range(len(self.starts))]
        total = torch.zeros((self.starts[-1] + self.length) * factor)
        for start, ramp in zip(self.starts, ramps, strict=True):
            total[start * factor :][: len(ramp)] += ramp
        return ramps[self.index] / total[self.pixels(factor)]


def _spans(side: int, count: int) -> list[_Span]:
    starts = tile_starts(side, count)
    return [_Span(starts, tile_length(side, count), i) for i in range(len(starts))]


def _ramp(starts: tuple[int, ...], length: int, index: int, factor: int) -> Tensor:
    """Return weights that rise over the overlap with the tile before and fall over that with the next."""
    x = torch.arange(length * factor) + 0.5
    ramp = torch.ones(length * factor)
    if index > 0:
        ramp = ramp.minimum(x / ((starts[index - 1] + length - starts[index]) * factor))
    if index < len(starts) - 1:
        shared = (starts[index] + length - starts[index + 1]) * factor
        ramp = ramp.minimum((length * factor - x) / shared)
    return ramp


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: _Span
    columns: _Span

    def cut(self, latent_BCTHW: Tensor) -> Tensor:
        return latent_BCTHW[self.pixels(1)]

    def pixels(self, factor: int) -> tuple[Any, slice, slice]:
        """Return the tile's slices in a tensor whose last two axes are `factor` times the latent's."""
        return ..., self.rows.pixels(factor), self.columns.pixels(factor)

    def add_to(self, video_BCTHW: Tensor, pixels_BCTHW: Tensor, factor: int) -> None:
        """Add the tile's weighted pixels to the picture."""
        weights_HW = self.rows.weights(factor)[:, None] * self.columns.weights(factor)
        part = video_BCTHW[self.pixels(factor)]
        # A copy that waited for the device would keep the next tick from being launched.
        part.addcmul_(pixels_BCTHW.float(), weights_HW.to(video_BCTHW.device, non_blocking=True))
