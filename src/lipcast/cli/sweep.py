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

import click

from lipcast.cli.command import Command, Option, Section, as_arguments, switch
from lipcast.cli.compat_flags import BY_NAME
from lipcast.cli.console import Console
from lipcast.cli.options import OPTIONS
from lipcast.cli.types import COUNT, FILE
from lipcast.errors import CancelledError, UsageError

if TYPE_CHECKING:
    from lipcast.lab.matrix import Cell, Matrix
    from lipcast.lab.results import CellResult

_RESULTS = "bench.jsonl"
SWEEP_OPTIONS: tuple[Option, ...] = (
    Option(
        "matrix", "Sweep: a .toml or .json file with its axes (docs/lab.md).",
        section=Section.FILES, type=FILE,
    ),
    Option(
        "preset", "Sweep that is built in: low-vram-study.", section=Section.FILES, metavar="NAME"
    ),
    Option(
        "results", "File to which a sweep appends its results.",
        section=Section.FILES, type=FILE, show_default=_RESULTS,
    ),
    switch("resume", "Skip cells that the file of results has already.", section=Section.FILES),
    Option(
        "repeats", "Processes for each cell, or for the options as given.",
        section=Section.FILES, type=COUNT, metavar="N", show_default="the matrix's",
    ),
    Option(
        "timeout_s", "Seconds after which a cell of a sweep is ended.",
        section=Section.FILES, type=float, metavar="SECONDS",
    ),
)  # fmt: skip
_CONSOLE = frozenset({"json", "quiet", "verbose", "debug"})
_MIB = 2**20
_BENCH = Command("bench", params=list(OPTIONS))
"""Options that a cell may name."""


def run(own: Mapping[str, Any], shared: Mapping[str, Any], console: Console) -> None:
    """Run a sweep to its end, whatever its cells do. `own`: its options; `shared`: those of all cells."""
    from lipcast.lab.results import by_cell, read_results
    from lipcast.lab.sweep import Sweep, run_sweep

    matrix = _matrix(own)
    fixed = {name: _cell_value(value) for name, value in shared.items() if name not in _CONSOLE}
    cells = [{**fixed, **cell} for cell in matrix.cells()]
    sweep = Sweep(
        command=lambda cell: _process(cell, matrix),
        refusal=refusal,
        shown_command=lambda cell: shlex.join(["lipcast", *_arguments(cell, matrix)]),
        repeats=matrix.repeats,
        timeout_s=own.get("timeout_s"),
    )
    results = own.get("results", Path(_RESULTS))
    try:
        for record in run_sweep(sweep, cells, results, resume=own.get("resume", False)):
            reason = f": {record['reason']}" if record.get("reason") else ""
            flags = " ".join(f"{name}={value}" for name, value in record["cell"].items())
            console.log(f"{flags}: {record['status']}{reason}")
    except KeyboardInterrupt as error:
        raise CancelledError(
            f"stopped; finished cells are in {results}, and --resume goes on with the others"
        ) from error
    click.echo(table(by_cell(read_results([results]))))


def _cell_value(value: Any) -> Any:
    """Return a value as a matrix has it: plain, several as lines."""
    if isinstance(value, tuple):
        return "\n".join(value)
    return str(value) if isinstance(value, Path) else value


def refusal(cell: Cell) -> str:
    """Return why a cell cannot be put into options; empty where it can."""
    for name, value in cell.items():
        if _BENCH.option(name) is None:
            return f"unknown flag '{name}'; see `lipcast bench --help`"
        if value is False and name in BY_NAME and BY_NAME[name].is_switch:
            return f"{name} cannot be switched off: {BY_NAME[name].reason}"
    return ""


def _matrix(own: Mapping[str, Any]) -> Matrix:
    from lipcast.lab.matrix import PRESETS, Matrix, read_matrix

    if "matrix" in own and "preset" in own:
        raise UsageError("--matrix and --preset were both given; leave one out")
    if "matrix" in own:
        matrix = read_matrix(own["matrix"])
    elif "preset" not in own:
        matrix = Matrix(axes={})  # one cell: the options as they were given
    elif own["preset"] in PRESETS:
        matrix = PRESETS[own["preset"]]
    else:
        raise UsageError(f"--preset: expected {' or '.join(PRESETS)}, got {own['preset']}")
    counts = ("num_blocks", "warm_up_blocks", "repeats")
    changes: dict[str, Any] = {name: own[name] for name in counts if name in own}
    return replace(matrix, **changes)


def _process(cell: Cell, matrix: Matrix) -> list[str]:
    """Return the command line that measures a cell in a process of its own."""
    start = "from lipcast.cli.main import run; run()"
    return [sys.executable, "-c", start, *_arguments(cell, matrix), "--json"]


def _arguments(cell: Cell, matrix: Matrix) -> list[str]:
    """Return the words that measure a cell."""
    counts = [
        "--num_blocks",
        str(matrix.num_blocks),
        "--warm_up_blocks",
        str(matrix.warm_up_blocks),
    ]
    return ["bench", *as_arguments(_BENCH, {"schedule": "sequential", **cell}), *counts]


def table(cells: Sequence[CellResult]) -> str:
    """Return a line for every cell: median over its processes, with least and greatest."""
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
