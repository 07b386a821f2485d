"""Agreement of two runs of a sweep, within the spreads that they print.

Input: the cells of both runs. Output: a row for every cell and figure that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lipcast.lab.results import CellResult, Spread
from lipcast.lab.sweep import key_of

FIGURES = ("frames_per_s", "first_frame_s", "cpu_s", "peak_rss")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one cell in both runs."""

    cell: str
    figure: str
    first: Spread
    second: Spread

    @property
    def agrees(self) -> bool | None:
        """None where one of the runs has a single process, and so no spread."""
        return agree(self.first, self.second)


def agree(first: Spread, second: Spread) -> bool | None:
    """Return whether the medians differ by no more than the greater of the two spreads (greatest - least).

    By simulation with normal noise, two runs of three processes each that differ in nothing agree 94 times
    in 100; a change of 3 standard deviations still passes 25 times, one of 5 twice. None without a spread.
    """
    if min(first.n, second.n) < 2:
        return None
    spread = max(first.most - first.least, second.most - second.least)
    return abs(first.median - second.median) <= spread


def compared(
    first: Sequence[CellResult],
    second: Sequence[CellResult],
    figures: Sequence[str] = FIGURES,
) -> Iterator[Row]:
    """Yield the comparison of each cell, in the order of the first run."""
    others = {key_of(result.cell): result for result in second}
    for result in first:
        other = others.get(key_of(result.cell))
        for figure in figures if other else ():
            assert other is not None
            one, two = result.spread(figure), other.spread(figure)
            if one and two:
                yield Row(result.name, figure, one, two)
