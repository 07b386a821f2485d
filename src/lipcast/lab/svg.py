"""Plots as SVG text: lines over time, points with names, bars with spread. No dependency, no script.

Input: numbers. Output: one <svg> element that scales to the width it is given, with a title for those
who cannot see it. Colours are CSS classes s0 to s5, so that a style sheet can change them for print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_CHARACTER = 7.0
"""About the width of a character, in the units of the picture."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44
NUM_COLOURS = 6
_LINE = 13
"""Height of a line of text."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve with its name; points are (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line across the plot."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class Point:
    """A named point; `best` ones are drawn full and joined (a Pareto curve)."""

    name: str
    x: float
    y: float
    best: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its least and greatest."""

    name: str
    value: float
    least: float
    most: float


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (f * step) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """From numbers to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int = _HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        width, height = _WIDTH - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return round(_LEFT + across * width, 1), round(self.height - _BOTTOM - up * height, 1)

    def axes(self, x_label: str, y_label: str) -> list[str]:
        parts = []
        right = _WIDTH - _RIGHT
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4}">{value:g}</text>')
        for value in ticks(*self.x):
            x, y = self.at(value, self.y[0])
            parts.append(f'<text class="mid" x="{x}" y="{y + 16}">{value:g}</text>')
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text class="mid" x="{middle}" y="{self.height - 6}">{escape(x_label)}</text>'
        )
        upright = f"rotate(-90 14 {self.height / 2})"
        label = f'<text class="mid" x="14" y="{self.height / 2}" transform="{upright}">'
        parts.append(f"{label}{escape(y_label)}</text>")
        return parts


def _wrapped(parts: Sequence[str], title: str, height: int) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    marks: Sequence[float] = (),
) -> str:
    """Draw curves over one axis; `marks` are upright lines at some x. Starts at y = 0 or below."""
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in lines for _, y in line.points] + [level.y for level in levels]
    frame = _Frame((min(xs), max(xs)), (min(0.0, *ys, 0.0), 1.05 * max([*ys, 1e-9])))
    parts = frame.axes(x_label, y_label)
    for mark in marks:
        (x, low), (_, high) = frame.at(mark, frame.y[0]), frame.at(mark, frame.y[1])
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
    labelled = frame.at(0, frame.y[0])[1]
    names = []
    for level in sorted(levels, key=lambda level: level.y):
        x, y = frame.at(frame.x[1], level.y)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{x}" y1="{y}" y2="{y}"/>')
        # A label that would touch the one below goes up until it does not.
        labelled = min(y - 4, labelled - _LINE)
        names.append(f'<text class="end" x="{x - 4}" y="{labelled}">{escape(level.name)}</text>')
    for i, line in enumerate(lines):
        places = " ".join(f"{x},{y}" for x, y in (frame.at(*point) for point in line.points))
        parts.append(f'<polyline class="line s{i % NUM_COLOURS}" points="{places}"/>')
    return _wrapped([*parts, *names, *_legend([line.name for line in lines])], title, _HEIGHT)


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    parts, x = [], _LEFT + 6
    for i, name in enumerate(names):
        parts.append(f'<rect class="s{i % NUM_COLOURS}" x="{x}" y="4" width="10" height="10"/>')
        parts.append(f'<text x="{x + 14}" y="13">{escape(name)}</text>')
        x += 26 + round(6.6 * len(name))
    return parts


def scatter_plot(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Draw named points; the best ones are joined in order of x."""
    height = _HEIGHT + 60
    frame = _Frame(
        _padded([point.x for point in points]), _padded([point.y for point in points]), height
    )
    parts = frame.axes(x_label, y_label)
    best = sorted((point for point in points if point.best), key=lambda point: point.x)
    places = " ".join(f"{x},{y}" for x, y in (frame.at(p.x, p.y) for p in best))
    parts.append(f'<polyline class="line s0" points="{places}"/>')
    taken: list[tuple[float, float, float]] = []
    for point in points:
        x, y = frame.at(point.x, point.y)
        fill = "s0" if point.best else "hollow"
        side, shift = ("end", -7) if x > _WIDTH * 0.6 else ("start", 7)
        length = _CHARACTER * len(point.name)
        left = x + shift - (length if side == "end" else 0)
        base = _free(taken, left, left + length, y)
        taken.append((left, left + length, base))
        parts.append(f'<circle class="{fill}" cx="{x}" cy="{y}" r="5"/>')
        parts.append(f'<text class="{side}" x="{x + shift}" y="{base}">{escape(point.name)}</text>')
    return _wrapped(parts, title, height)


def _free(
    taken: Sequence[tuple[float, float, float]], left: float, right: float, y: float
) -> float:
    """Return a line for a name near `y` that no other name (left, right, base line) stands on."""
    bases = [round(y + shift, 1) for shift in (-7, 17, -22, 32, -37, 47)]
    for base in bases:
        if all(right < a or left > b or abs(base - other) >= _LINE for a, b, other in taken):
            return base
    return bases[0]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def bar_plot(bars: Sequence[Bar], *, title: str, x_label: str) -> str:
    """Draw a lying bar for each, from 0, under its name; whiskers from least to greatest, then the value."""
    row, left = 42, 6
    scale = (_WIDTH - left - 70) / max([1e-9, *(bar.most for bar in bars)])
    parts = []
    for i, bar in enumerate(bars):
        y = 18 + i * row
        width, low, high = (round(v * scale, 1) for v in (bar.value, bar.least, bar.most))
        middle = y + 13
        parts += [
            f'<text x="{left}" y="{y}">{escape(bar.name)}</text>',
            f'<rect class="s0" x="{left}" y="{y + 5}" width="{width}" height="16"/>',
            f'<line class="whisker" x1="{left + low}" x2="{left + high}" y1="{middle}"'
            f' y2="{middle}"/>',
            f'<text x="{left + high + 6}" y="{y + 18}">{bar.value:.3g}</text>',
        ]
    bottom = 8 + len(bars) * row
    parts.append(f'<text class="mid" x="{_WIDTH / 2}" y="{bottom + 14}">{escape(x_label)}</text>')
    return _wrapped(parts, title, bottom + 22)
