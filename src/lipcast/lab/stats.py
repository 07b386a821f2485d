"""Means with confidence intervals, and what is best of two aims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 4000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of n values, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        """Return "0.912 [0.884, 0.936], n 20"; no interval for fewer than three values."""
        size = max(abs(self.low), abs(self.high))
        digits = 3 if size < 10 else 1 if size < 1000 else 0
        if self.n < 3:
            return f"{self.mean:.{digits}f}, n {self.n}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}], n {self.n}"


def interval(values: Sequence[float]) -> Interval:
    """Return a percentile bootstrap of the mean, 4000 resamples, always the same ones (Efron 1979)."""
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(_SEED).integers(0, len(data), (_RESAMPLES, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high), len(data))


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which (cost, quality) no other one beats: none costs at most as much and is better."""
    return [
        not any(
            other[0] <= cost and other[1] >= quality and other != (cost, quality)
            for other in points
        )
        for cost, quality in points
    ]
