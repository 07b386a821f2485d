"""The part of the report that sweeps fill: cells, speed, memory over time, how to measure again.

Input: `CellResult`s. Output: (title, HTML) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lipcast.lab.results import CellResult, Spread
from lipcast.lab.svg import Bar, Level, Line, bar_plot, line_plot

_MIB = 2**20
_MOST_PLOTS = 12
_MOST_LEVELS = 4


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return an HTML table whose first columns are text; cells are escaped. Scrolls on a narrow screen."""
    kind = ["" if i < text_columns else " class=n" for i in range(len(heads))]
    top = "".join(f"<th{c}>{escape(head)}</th>" for c, head in zip(kind, heads, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{c}>{escape(v)}</td>" for c, v in zip(kind, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def short_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each cell by the flags in which the cells differ."""
    flags = list(dict.fromkeys(flag for cell in cells for flag in cell))
    varied = [flag for flag in flags if len({str(cell.get(flag)) for cell in cells}) > 1]
    return [
        ", ".join(f"{flag} {cell[flag]}" for flag in varied if flag in cell) or "the only cell"
        for cell in cells
    ]


def bench_sections(cells: Sequence[CellResult]) -> list[tuple[str, str]]:
    """Return a table of all cells, speed, memory over time, and cells without figures."""
    measured = [cell for cell in cells if cell.good]
    good = list(zip(short_names([cell.cell for cell in measured]), measured, strict=True))
    lost = [cell for cell in cells if not cell.good]
    statuses = [cell.status for cell in lost]
    bad = list(zip(short_names([cell.cell for cell in lost]), statuses, strict=True))
    sections = []
    if good:
        sections += [
            ("Speed", _speeds(good)),
            ("Memory", _sizes(good)),
            ("Frames a second", _speed(good)),
            ("Memory over time", _memory(good)),
        ]
    if bad:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td class=why>{escape(status)}</td></tr>"
            for name, status in bad
        )
        html = f"<div class=wide><table><tbody>{rows}</tbody></table></div>"
        sections.append(("Cells without figures", html))
    return sections


def _text(spread: Spread | None, scale: float = 1, digits: int = 2) -> str:
    if spread is None:
        return "n/a"
    return spread.scaled(scale).text(digits)


def _speeds(good: Sequence[tuple[str, CellResult]]) -> str:
    heads = [
        "cell", "processes", "frames/s", "first frame, s", "s per block", "processor s", "speech",
        "transformer", "decoder", "file", "x real time",
    ]  # fmt: skip
    columns = (
        "frames_per_s", "first_frame_s", "block_s", "cpu_s", "speech_s", "dit_s", "vae_s", "mux_s",
        "real_time",
    )  # fmt: skip
    rows = [
        [name, str(len(cell.good)), *(_text(cell.spread(column)) for column in columns)]
        for name, cell in good
    ]
    note = (
        "<p class=soft>Median over processes, with least and greatest. Seconds are for a block of 12 "
        "frames, in all and by part; processor s: what all threads worked for one, which other "
        "programs disturb less.</p>"
    )
    return table(heads, rows) + note


def _sizes(good: Sequence[tuple[str, CellResult]]) -> str:
    heads = [
        "cell", "peak RSS, MiB", "peak VRAM, MiB", "NVML, MiB", "predicted, MiB", "energy, J"
    ]  # fmt: skip
    columns = ("peak_rss", "peak_vram", "nvml", "predicted")
    rows = [
        [
            name,
            *(_text(cell.spread(column), _MIB, 0) for column in columns),
            _text(cell.spread("energy_j"), digits=0),
        ]
        for name, cell in good
    ]
    note = (
        "<p class=soft>Predicted: computed before anything was loaded; on a CPU without the "
        "interpreter and its libraries. n/a: no GPU, or one that does not count its energy.</p>"
    )
    return table(heads, rows) + note


def _speed(good: Sequence[tuple[str, CellResult]]) -> str:
    bars = []
    for name, cell in good:
        if spread := cell.spread("frames_per_s"):
            bars.append(Bar(name, spread.median, spread.least, spread.most))
    return f"<figure>{bar_plot(bars, title='frames a second by cell', x_label='frames/s')}</figure>"


def _memory(good: Sequence[tuple[str, CellResult]]) -> str:
    """Return a small plot for each cell: memory seen from outside, with what was predicted by part."""
    sampled = [(name, cell) for name, cell in good if cell.good[0]["samples"].get("t_s")]
    if not sampled:
        return "<p class=soft>n/a: the memory over time is not in these results.</p>"
    plots = [
        f"<figure>{_memory_plot(name, cell)}<figcaption>{escape(name)}</figcaption></figure>"
        for name, cell in sampled[:_MOST_PLOTS]
    ]
    left = len(good) - len(plots)
    more = f"<p class=soft>{left} more cells are in the table.</p>" if left else ""
    return f"<div class=grid2>{''.join(plots)}</div>{more}"


def _memory_plot(name: str, cell: CellResult) -> str:
    record = cell.good[0]
    samples, predicted = record["samples"], record["document"].get("predicted", {})
    times, resident = samples["t_s"], samples.get("rss_bytes", ())
    lines = [Line("RSS", [(t, b / _MIB) for t, b in zip(times, resident, strict=False)])]
    for card in range(len(samples.get("gpu_peak_bytes", ()))):
        used = [
            (t, cards[card] / _MIB) for t, cards in zip(times, samples["gpu_bytes"], strict=True)
        ]
        lines.append(Line(f"GPU {card}", used))
    return line_plot(
        lines,
        title=f"memory over time, {name}",
        x_label="seconds since the process began",
        y_label="MiB",
        levels=_levels(predicted.get("parts", {})),
    )


def _levels(parts: Mapping[str, int]) -> list[Level]:
    """Return the largest parts of the plan, stacked from the bottom; the rest as the sum of all."""
    counted = {name: size for name, size in parts.items() if name != "KV ring of one step"}
    ranked = sorted(counted.items(), key=lambda part: -part[1])
    levels, height = [], 0.0
    for i, (name, size) in enumerate(ranked[:_MOST_LEVELS]):
        height += size / _MIB
        levels.append(Level(f"{'+ ' if i else ''}{name}", height))
    return levels


def environment(cells: Sequence[CellResult]) -> str:
    """Return the conditions that the figures hold for, and the command that measures each cell again."""
    measured = [
        record.get("document", {}).get("conditions", {}) for cell in cells for record in cell.good
    ]
    conditions = {
        name: str(value)
        for found in measured
        for name, value in found.items()
        if name not in {"peak_rss_bytes", "gpus"} and value is not None
    }
    rows = [[name.replace("_", " "), value] for name, value in conditions.items()]
    started = [
        str(record["started"]) for cell in cells for record in cell.records if "started" in record
    ]
    rows.append(["measured", f"{min(started)} to {max(started)}" if started else "n/a"])
    commands = "\n".join(
        dict.fromkeys(str(cell.records[-1].get("command", "n/a")) for cell in cells)
    )
    facts = table(["", ""], rows, text_columns=2)
    return f"{facts}<h3>Each cell again</h3><pre>{escape(commands)}</pre>"
