"""The sweep of `lipcast bench`: from flags to cells, from a cell to a command, and the table.

Input: the flags of a sweep, and the flags that all its cells share. Output: a file of results that
grows, a line for every cell as it ends, and a table at the end.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lipcast.cli.console import Console
from lipcast.cli.flag import CompatNoOp, Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.validate import RawFlags, Value, parse
from lipcast.errors import UsageError

if TYPE_CHECKING:
    from lipcast.lab.matrix import Cell, Matrix
    from lipcast.lab.results import CellResult

_RESULTS = "bench.jsonl"


def _flag(name: str, kind: Kind, text: str, default: str = "") -> Flag:
    return Flag(name, Group.FILES, kind, text, default=default)


SWEEP_FLAGS: tuple[Flag, ...] = (
    _flag("matrix", Kind.TEXT, "A sweep: a .toml or .json file with its axes (docs/lab.md)."),
    _flag("preset", Kind.TEXT, "A sweep that is built in: low-vram-study."),
    _flag("results", Kind.TEXT, "Where a sweep appends its results.", _RESULTS),
    _flag("resume", Kind.SWITCH, "Leave out what the file of results has already."),
    _flag(
        "repeats",
        Kind.WHOLE_VIDEO,
        "Processes for each cell, or for the flags as given.",
        "the matrix's",
    ),
    _flag("timeout_s", Kind.NUMBER, "End a cell of a sweep after so many seconds."),
)
_TALK = frozenset({"json", "quiet", "verbose", "debug"})
_MIB = 2**20


def run(values: Mapping[str, Value], given: Mapping[str, RawFlags], talk: Console) -> None:
    """Run a sweep to its end, whatever its cells do."""
    from lipcast.lab.results import by_cell, read_results
    from lipcast.lab.sweep import Sweep, run_sweep

    matrix = _matrix(values)
    known = {flag.name: flag for flag in FLAGS}
    # In their kinds, as a matrix has them: the report joins results by these values.
    shared = {name: parse(known[name], given[name]) for name in given if name not in _TALK}
    cells = [{**shared, **cell} for cell in matrix.cells()]
    timeout = float(values["timeout_s"]) if "timeout_s" in values else None
    sweep = Sweep(
        command=lambda cell: _process(cell, matrix),
        refusal=refusal,
        shown_command=lambda cell: shlex.join(["lipcast", *_arguments(cell, matrix)]),
        repeats=int(values.get("repeats", matrix.repeats)),
        timeout_s=timeout,
    )
    results = Path(str(values.get("results", _RESULTS))).expanduser()
    for record in run_sweep(sweep, cells, results, resume=bool(values.get("resume"))):
        reason = f": {record['reason']}" if record.get("reason") else ""
        flags = " ".join(f"{name}={value}" for name, value in record["cell"].items())
        talk.note(f"{flags}: {record['status']}{reason}")
    typer.echo(table(by_cell(read_results([results]))))


def refusal(cell: Cell) -> str:
    """Why a cell cannot be put into flags; empty where it can."""
    flags = {flag.name: flag for flag in FLAGS}
    for name, value in cell.items():
        flag = flags.get(name)
        if flag is None:
            return f"{name}: expected a flag of lipcast bench, got this one"
        if value is False and flag.kind is Kind.SWITCH and isinstance(flag.rule, CompatNoOp):
            return f"{name} cannot be switched off: {flag.rule.because}"
    return ""


def _matrix(values: Mapping[str, Value]) -> Matrix:
    from lipcast.lab.matrix import PRESETS, Matrix, read_matrix

    if "matrix" in values and "preset" in values:
        raise UsageError("expected --matrix or --preset, got both; leave one out")
    if "matrix" in values:
        matrix = read_matrix(Path(str(values["matrix"])).expanduser())
    elif "preset" not in values:
        matrix = Matrix(axes={})  # one cell: the flags as they were given
    else:
        name = str(values["preset"])
        if name not in PRESETS:
            raise UsageError(f"--preset: expected {' or '.join(PRESETS)}, got {name}")
        matrix = PRESETS[name]
    counts = ("num_blocks", "warm_up_blocks", "repeats")
    given: dict[str, int] = {name: int(values[name]) for name in counts if name in values}
    if least := [name for name, count in given.items() if count < 1]:
        raise UsageError(f"--{least[0]}: expected at least 1, got {given[least[0]]}")
    changes: dict[str, Any] = given
    return replace(matrix, **changes)


def _process(cell: Cell, matrix: Matrix) -> list[str]:
    """This verb in a process of its own."""
    start = "from lipcast.cli.main import run; run()"
    return [sys.executable, "-c", start, *_arguments(cell, matrix), "--json"]


def _arguments(cell: Cell, matrix: Matrix) -> list[str]:
    """The words that measure a cell."""
    words = ["bench"]
    for name, value in {"schedule": "sequential", **cell}.items():
        words += _words(next(flag for flag in FLAGS if flag.name == name), value)
    counts = {"num_blocks": matrix.num_blocks, "warm_up_blocks": matrix.warm_up_blocks}
    return words + [word for name, n in counts.items() for word in (f"--{name}", str(n))]


def _words(flag: Flag, value: Value) -> list[str]:
    if flag.kind is Kind.SWITCH:
        return [f"--{flag.name}"] if value else []
    if flag.kind is Kind.TOGGLE:
        return [f"--{flag.name}" if value else f"--no_{flag.name}"]
    return [f"--{flag.name}", str(value)]


def table(cells: Sequence[CellResult]) -> str:
    """A line for every cell: median over its processes, with least and greatest."""
    lines = [
        f"{'frames/s':>20}{'first frame s':>20}{'x real time':>12}{'RSS MiB':>9}{'VRAM MiB':>9}  cell"
    ]
    for result in cells:
        if result.status.startswith("ok"):
            lines.append(f"{_figures(result)}  {result.name}")
        else:
            lines.append(f"{'':>70}  {result.name}: {result.status}")
    return "\n".join(lines)


def _figures(result: CellResult) -> str:
    speed, first = result.spread("frames_per_s"), result.spread("first_frame_s")
    real, rss, vram = (result.spread(name) for name in ("real_time", "peak_rss", "peak_vram"))
    assert speed and first and real and rss
    gpu = f"{vram.median / _MIB:.0f}" if vram else "n/a"
    return (
        f"{speed.text():>20}{first.text():>20}{real.median:>12.2f}{rss.median / _MIB:>9.0f}{gpu:>9}"
    )
