"""Two runs agree where they measured the same, and differ where something changed."""

from __future__ import annotations

import numpy as np
import pytest
from test_report import bench_record

from lipcast.lab.agreement import agree, compared
from lipcast.lab.results import CellResult, Spread, by_cell


def spread(values: np.ndarray) -> Spread:
    return Spread(float(np.median(values)), float(values.min()), float(values.max()), len(values))


@pytest.mark.parametrize(("shift", "least", "most"), [(0, 0.9, 0.98), (5, 0.0, 0.05)])
def test_how_often_runs_agree(shift, least, most):
    """The shares that the docstring promises, for three processes a run."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (4000, 3)), rng.normal(shift, 1, (4000, 3))
    found = [agree(spread(a), spread(b)) for a, b in zip(first, second, strict=True)]
    assert least <= np.mean(found) <= most


def test_the_rule():
    assert agree(Spread(10, 9, 11, 3), Spread(12, 11.5, 12.5, 3))
    assert not agree(Spread(10, 9, 11, 3), Spread(12.1, 11.5, 12.5, 3))
    assert agree(Spread(10, 10, 10, 1), Spread(10, 9, 11, 3)) is None


def cells(*speeds: float) -> list[CellResult]:
    """Two cells of three processes; the first one's frames a second are around those given."""
    records = []
    for window, speed in zip((48, 32), speeds, strict=True):
        for repeat in range(3):
            record = bench_record(window, repeat=repeat)
            record["document"]["rows"][0] |= {"frames_per_s": speed + 0.1 * repeat, "cpu_s": 1.0}
            records.append(record)
    return by_cell([*records, bench_record(24, "out of memory")])


def test_runs_are_compared_cell_by_cell():
    rows = list(compared(cells(5, 7), cells(5.1, 9)))
    assert [row.figure for row in rows] == [
        "frames_per_s",
        "first_frame_s",
        "cpu_s",
        "peak_rss",
    ] * 2
    assert [row.agrees for row in rows] == [True] * 4 + [False] + [True] * 3
    assert "infer_frames 32" in rows[4].cell
    assert list(compared(cells(5, 7), [])) == []
