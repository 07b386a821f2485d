"""One measured number, or the reason why there is none.

Every function that makes metrics says in its docstring what is measured, in which range and unit,
which way is better, and where the definition comes from.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["higher", "lower", "zero", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`value` is None exactly where `reason` says why."""

    group: str
    name: str
    value: float | None
    unit: str = ""
    better: Better = "neither"
    reason: str = ""
    note: str = ""
    """What a reader of the number should know: which lag, at which frame."""

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason)
        assert self.value is None or math.isfinite(self.value), self.name

    def text(self) -> str:
        """Return the value with its unit, or "n/a" with the reason."""
        if self.value is None:
            return f"n/a: {self.reason}"
        return f"{self.value:.4g} {self.unit}".rstrip()

    def document(self) -> dict[str, Any]:
        """Return the metric as plain data."""
        return asdict(self)


def unavailable(group: str, name: str, reason: str) -> Metric:
    """Return a metric that could not be measured, and why."""
    return Metric(group, name, None, reason=reason)


def measured(
    group: str, name: str, value: float, unit: str, better: Better, *, note: str = ""
) -> Metric:
    """Return a metric; a value that is not finite becomes n/a with that as its reason."""
    if math.isfinite(value):
        return Metric(group, name, float(value), unit, better, note=note)
    return unavailable(group, name, "the arithmetic has no answer: nothing in it varies")
