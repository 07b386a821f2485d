"""`lipcast bench`: how fast this machine is, part by part, with its conditions.

Input: the flags. Output: a table on standard error and, last on standard output, one JSON document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from lipcast.cli.flag import Flag
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.judge import Given, judge
from lipcast.cli.talk import Talk
from lipcast.core.request import OPTION_NAMES

if TYPE_CHECKING:
    from lipcast.lab.bench import BenchRow

_SHARED = frozenset(
    {"model", "size", "infer_frames", "sample_steps", "fold_last_step", "device",
     "precision", "json", "debug", "quiet"}
)  # fmt: skip
BENCH_FLAGS: tuple[Flag, ...] = tuple(flag for flag in FLAGS if flag.name in _SHARED)
_BLOCK_BUDGET_S = 0.48
"""A block is so many seconds of video: the time it may take for real time."""


def bench(given: Mapping[str, Given]) -> None:
    """Measure seconds per block, split into speech, transformer, VAE and file, for both schedules.

    Close other programs first. The last line of standard output is one JSON document.

        lipcast bench --model tiny
        lipcast bench --model tiny --size "128*128" --sample_steps 3
    """
    from lipcast.api import load
    from lipcast.lab import bench as lab

    talk = Talk.begin(given)
    settings = judge(given, on_cpu=lambda: True).settings
    options: dict[str, Any] = {k: v for k, v in settings.items() if k in OPTION_NAMES}
    given_text = {k: str(settings[k]) for k in ("device", "precision") if k in settings}
    model = load(str(settings.get("model", "tiny")), **given_text)
    rows = lab.bench(model, **options)
    if not talk.as_json:
        typer.echo(_table(rows), err=True)
    document = {"conditions": lab.conditions(model), "options": options}
    typer.echo(json.dumps(document | {"rows": [asdict(row) for row in rows]}))


def _table(rows: Sequence[BenchRow]) -> str:
    """Seconds per block of 12 frames, median."""
    head = f"{'s per block':<12}{'speech':>8}{'DiT':>8}{'VAE':>8}{'file':>8}{'total':>8}{'fps':>8}"
    lines = [f"{head}{'x real time':>13}{'first frame':>13}"]
    for row in rows:
        parts = "".join(f"{seconds:8.3f}" for seconds in row.parts.values())
        lines.append(
            f"{row.schedule:<12}{parts}{row.block_s:8.3f}{row.frames_per_s:8.1f}"
            f"{row.block_s / _BLOCK_BUDGET_S:13.2f}{row.first_frame_s:12.1f}s"
        )
    return "\n".join(lines)
