"""The part of the report that evaluations fill: metrics by cell, curves, quality against memory.

Input: records of kind "quality": an evaluation's document, and the flags its video was made with.
Output: (title, HTML) pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from lipcast.lab.report_bench import short_names, table
from lipcast.lab.results import CellResult
from lipcast.lab.stats import Interval, interval, pareto
from lipcast.lab.svg import Line, Point, line_plot, scatter_plot

_MOST_CURVES = 6
_MIB = 2**20
_SYNC = ("lip sync", "correlation")


def quality_sections(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the means of every metric by cell, and the curves of the first few videos."""
    curves = _curves(records) or "<p class=soft>n/a: the curves are not in these results.</p>"
    return [("Quality", _means(records)), ("Curves", curves)]


def grouped(records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[Any]]]:
    """Return the records of each cell, in the order in which cells first came."""
    cells: dict[str, list[Any]] = {}
    for record in records:
        cells.setdefault(json.dumps(record["cell"], sort_keys=True), []).append(record)
    return [(found[0]["cell"], found) for found in cells.values()]


def metric_interval(records: Sequence[Mapping[str, Any]], group: str, name: str) -> Interval | None:
    """Return one metric over some videos; None where none of them has it."""
    found = [
        metric["value"]
        for record in records
        for metric in record["evaluation"]["metrics"]
        if (metric["group"], metric["name"]) == (group, name) and metric["value"] is not None
    ]
    return interval(found) if found else None


def _means(records: Sequence[Mapping[str, Any]]) -> str:
    cells = grouped(records)
    names = short_names([cell for cell, _ in cells])
    wanted = dict.fromkeys(
        (metric["group"], metric["name"], metric["unit"])
        for record in records
        for metric in record["evaluation"]["metrics"]
        if metric["value"] is not None
    )
    rows = []
    for group, name, unit in wanted:
        means = [metric_interval(found, group, name) for _, found in cells]
        texts = [mean.text() if mean else "n/a" for mean in means]
        rows.append([group, f"{name}, {unit}" if unit else name, *texts])
    note = (
        "<p class=soft>Mean, with the bootstrap interval of 95 % where there are three videos or more. "
        f"Not measured: {escape(_missing(records))}.</p>"
    )
    return table(["", "metric", *names], rows, text_columns=2) + note


def _missing(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the metrics that no video has, with the reason."""
    reasons = {
        f"{metric['group']} {metric['name']}": metric["reason"]
        for record in records
        for metric in record["evaluation"]["metrics"]
        if metric["value"] is None
    }
    return "; ".join(f"{name} ({reason})" for name, reason in reasons.items()) or "nothing"


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    drawn = [record["evaluation"] for record in records if record["evaluation"]["curves"]]
    if not drawn:
        return ""
    shown = "".join(_curve_plots(evaluation) for evaluation in drawn[:_MOST_CURVES])
    left = len(records) - _MOST_CURVES
    more = f"<p class=soft>{left} more videos are in the table.</p>" if left > 0 else ""
    return f"<div class=grid2>{shown}</div>{more}"


def _curve_plots(evaluation: Mapping[str, Any]) -> str:
    """Plot mouth against loudness, and the change from frame to frame with jumps marked."""
    fps, curves, name = evaluation["fps"], evaluation["curves"], PurePath(evaluation["video"]).name

    def plot(title: str, lines: list[Line], y_label: str, marks: Sequence[float] = ()) -> str:
        svg = line_plot(lines, title=title, x_label="seconds", y_label=y_label, marks=marks)
        return f"<figure>{svg}<figcaption>{escape(title)}</figcaption></figure>"

    def line(label: str, values: Sequence[float], scale: float = 1) -> Line:
        return Line(label, [(i / fps, value / scale) for i, value in enumerate(values)])

    plots = []
    if "mouth" in curves and "loudness" in curves:
        loudest = max(curves["loudness"]) or 1
        lines = [line("mouth", curves["mouth"]), line("loudness", curves["loudness"], loudest)]
        plots.append(plot(f"{name}: mouth opening and loudness", lines, "of the greatest"))
    if "change" in curves:
        jumps = [index / fps for index in evaluation["events"].get("jumps", ())]
        change = [line("change", curves["change"])]
        plots.append(plot(f"{name}: change from frame to frame", change, "grey levels", jumps))
    return "".join(plots)


def pareto_section(
    cells: Sequence[CellResult], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Plot lip sync against peak memory, for cells that have both; empty where fewer than two do.

    A video belongs to a cell where all flags that both name agree.
    """
    pairs: list[tuple[Mapping[str, Any], float, float]] = []
    for cell in cells:
        memory = cell.spread("peak_vram") or cell.spread("peak_rss")
        found = [record for record in records if _agree(cell.cell, record["cell"])]
        quality = metric_interval(found, *_SYNC)
        if memory and quality:
            pairs.append((cell.cell, memory.median / _MIB, quality.mean))
    if len(pairs) < 2:
        return []
    best = pareto([(memory, quality) for _, memory, quality in pairs])
    points = [
        Point(name, memory, quality, is_best)
        for name, (_, memory, quality), is_best in zip(
            short_names([cell for cell, _, _ in pairs]), pairs, best, strict=True
        )
    ]
    title = "lip sync against memory"
    svg = scatter_plot(points, title=title, x_label="peak memory, MiB", y_label="correlation")
    caption = (
        "Full points: no other cell has less memory and a higher lip-sync correlation. Means over the "
        "videos that each cell has: other portraits and voices make a difference too."
    )
    html = f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
    return [("Quality against memory", html)]


def _agree(cell: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(other) and all(cell.get(name, value) == value for name, value in other.items())
