"""Visibility of the seams between blocks, clips and segments.

Input: a `Survey` and how many frames a piece has. A join lies between the last frame of a piece and
the first of the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.lab.footage import Survey
from lipcast.lab.metric import Metric, measured, unavailable

GROUP = "joins"


def seams(survey: Survey, pieces: dict[str, int]) -> list[Metric]:
    """Measure the change at joins against the change inside of pieces, for each kind of piece.

    ratio: median change at the joins over the median inside; 0.., 1 is best, above it seams show.
    rank: probability that a join changes more than a moment inside, ties half (Mann and Whitney's U
    over its range); 0..1, 0.5 is best, and it does not mind outliers. `pieces`: frames by name.
    Changes are mean absolute differences in grey levels. Source: this project.
    """
    changes = survey.changes.astype(np.float64)
    borders = {name: _borders(survey.num_frames, length) for name, length in pieces.items()}
    anywhere = np.unique(np.concatenate([*borders.values(), np.zeros(0, int)])).astype(int)
    inside = np.delete(changes, anywhere - 1)
    return [metric for name in pieces for metric in _join(name, changes, borders[name], inside)]


def _borders(num_frames: int, length: int) -> NDArray[np.int_]:
    """Return the indices of the first frames of all pieces but the first."""
    return np.arange(length, num_frames, length)


def _join(
    name: str, changes: NDArray[np.float64], borders: NDArray[np.int_], inside: NDArray[np.float64]
) -> list[Metric]:
    if not len(borders) or not len(inside):
        return [unavailable(GROUP, f"{name} ratio", f"the video has no join of a {name}")]
    at = changes[borders - 1]
    middle = float(np.median(inside))
    ratio = float(np.median(at)) / middle if middle > 0 else float("nan")
    wins = (at[:, None] > inside).mean() + 0.5 * (at[:, None] == inside).mean()
    note = f"{len(at)} joins"
    return [
        measured(GROUP, f"{name} ratio", ratio, "", "lower", note=f"{note}; 1 is best"),
        measured(GROUP, f"{name} rank", float(wins), "", "lower", note=f"{note}; 0.5 is best"),
    ]
