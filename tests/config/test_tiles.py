"""Tiles cover a side, overlap enough, and are those that the planner counts with."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lipcast.config.tiles import TILE_OVERLAP, tile_length, tile_starts
from lipcast.planning.workload import tile_size

sides, counts = st.integers(1, 200), st.integers(1, 9)


@given(sides, counts)
def test_tiles_cover_the_side_and_overlap(side: int, count: int) -> None:
    length, starts = tile_length(side, count), tile_starts(side, count)
    assert 1 <= len(starts) <= count
    assert starts[0] == 0 and starts[-1] + length == side
    for before, after in pairwise(starts):
        assert before < after and before + length - after >= TILE_OVERLAP


@given(sides, sides, counts, counts)
def test_the_planner_counts_with_the_same_tiles(
    height: int, width: int, rows: int, columns: int
) -> None:
    request: Any = SimpleNamespace(
        geometry=SimpleNamespace(latent_height=height, latent_width=width)
    )
    expected = tile_length(height, rows), tile_length(width, columns)
    assert tile_size(request, (rows, columns)) == expected
