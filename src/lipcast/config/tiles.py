"""How a picture is cut into overlapping tiles, along one side of it. Numbers only.

Input: the side's length in latent pixels and a number of tiles. Output: the length of a tile and where
the tiles begin. Invariants: tiles have equal length, cover the side, and neighbours share at least
`TILE_OVERLAP`; never more tiles than asked for, fewer where a tile would be the whole side.
"""

from __future__ import annotations

TILE_OVERLAP = 8
"""Latent pixels that neighbouring tiles share: 64 pixels of the picture."""


def tile_length(side: int, count: int) -> int:
    """Return the length of each of `count` tiles, the overlap included."""
    return side if count == 1 else min(side, -(-side // count) + TILE_OVERLAP)


def tile_starts(side: int, count: int) -> tuple[int, ...]:
    """Return where the tiles begin, spread evenly from 0 to the last that fits."""
    length = tile_length(side, count)
    if length == side:
        return (0,)
    needed = -(-(side - TILE_OVERLAP) // (length - TILE_OVERLAP))
    return tuple(i * (side - length) // (needed - 1) for i in range(needed))
