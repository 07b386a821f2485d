"""`lipcast bench`: how fast this machine is, part by part, with its conditions; and sweeps of it.

Input: the flags. Output of one measurement: a table on standard error and, last on standard output,
one JSON document. Output of a sweep (--matrix, --preset): a table, and a line of JSON for every cell,
each measured by this same verb in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from lipcast.cli import sweep
from lipcast.cli.console import Console
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.info import describe
from lipcast.cli.model_configs import read_configs
from lipcast.cli.validate import RawFlags, Value, parse, validate
from lipcast.config.generate_options import OPTION_NAMES, SCHEDULES, GenerateOptions
from lipcast.errors import LipcastError, UsageError
from lipcast.planning.gpu_options import GPU_OPTION_NAMES
from lipcast.planning.memory_options import MEMORY_OPTION_NAMES

if TYPE_CHECKING:
    from lipcast.lab.bench import BenchRow

_LEFT_OUT = frozenset({"num_clip", "start_frame", "base_seed", "verbose"})
_GROUPS = frozenset(
    {Group.VIDEO, Group.MACHINE, Group.MEMORY, Group.GPUS, Group.TALK, Group.PUBLIC, Group.REFUSED}
)
_SHARED = tuple(
    flag
    for flag in FLAGS
    if flag.name not in _LEFT_OUT and (flag.group in _GROUPS or flag.name in {"model", "lora"})
)
_COUNTS = (
    Flag("num_blocks", Group.VIDEO, Kind.WHOLE_VIDEO, "Blocks that count.", default="8"),
    Flag("warm_up_blocks", Group.VIDEO, Kind.WHOLE_VIDEO, "Blocks before them.", default="4"),
)
BENCH_FLAGS: tuple[Flag, ...] = (*_SHARED, *_COUNTS, *sweep.SWEEP_FLAGS)
_BLOCK_BUDGET_S = 0.48
"""A block is so many seconds of video: the time it may take for real time."""


def bench(given: Mapping[str, RawFlags]) -> None:
    """Measure seconds per block, split into speech, transformer, VAE and file, for both schedules.

    Close other programs first. The last line of standard output is one JSON document.

        lipcast bench --model tiny
        lipcast bench --model tiny --size "128*128" --sample_steps 3
        lipcast bench --model tiny --device cpu --gpus 2

    With --repeats one setting is measured in so many fresh processes: median, least and greatest. A
    sweep measures every cell of a matrix in a process of its own, and appends to a file of results:

        lipcast bench --repeats 5 --sample_steps 3
        lipcast bench --preset low-vram-study --results study.jsonl --resume
    """
    talk = Console.begin(given)
    own = {flag.name: flag for flag in (*_COUNTS, *sweep.SWEEP_FLAGS)}
    values = {name: parse(flag, given[name]) for name, flag in own.items() if name in given}
    rest = {name: value for name, value in given.items() if name not in own}
    if {"matrix", "preset", "repeats"} & set(values):
        sweep.run(values, rest, talk)
        return
    if unused := sorted(set(values) & {"results", "resume", "timeout_s"}):
        raise UsageError(
            f"--{unused[0]}: expected --matrix, --preset or --repeats beside it, got none of them"
        )
    _measure(values, rest, talk)


def _measure(values: Mapping[str, Value], given: Mapping[str, RawFlags], talk: Console) -> None:
    settings = validate(given).settings
    options: dict[str, Any] = {k: v for k, v in settings.items() if k in OPTION_NAMES}
    GenerateOptions(**options)  # what is wrong with them is said before minutes of loading
    from lipcast.api import load
    from lipcast.lab import bench as lab

    machine = {k: v for k, v in settings.items() if k in (*MEMORY_OPTION_NAMES, *GPU_OPTION_NAMES)}
    # Two videos at a time would share a budget, or are more than several devices make.
    schedules = SCHEDULES[:1] if machine else SCHEDULES
    if "schedule" in options:
        schedules = (options.pop("schedule"),)
    name, how = str(settings.get("model", "tiny")), _how_to_load(settings) | machine
    with closing(load(name, expected=GenerateOptions(**options), **how)) as model:
        rows = lab.bench(model, schedules=schedules, **_counts(values), **options)
    if not talk.as_json:
        typer.echo(_table(rows), err=True)
    conditions = lab.conditions(model)
    document = {"conditions": conditions, "options": options}
    document["predicted"] = _predicted(settings, options, conditions)
    typer.echo(json.dumps(document | {"rows": [asdict(row) for row in rows]}))


def _how_to_load(settings: Mapping[str, Value]) -> dict[str, Any]:
    how: dict[str, Any] = {k: str(settings[k]) for k in ("device", "precision") if k in settings}
    if "lora" in settings:
        how["loras"] = str(settings["lora"]).splitlines()
    return how


def _counts(values: Mapping[str, Value]) -> dict[str, int]:
    counts = {k: int(values[k]) for k in ("num_blocks", "warm_up_blocks") if k in values}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"--{name}: expected at least 1, got {count}")
    return counts


def _predicted(
    settings: Mapping[str, Value], options: Mapping[str, Any], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Bytes by part: the planner's on a GPU, those that `lipcast info` counts on a CPU."""
    if conditions["gpu"]:
        return _planned(settings, options)
    model = str(settings.get("model", "tiny"))
    configs = read_configs(model)
    if "size" not in options:
        options = {**options, "size": f"{configs.dit.height or 704}*{configs.dit.width or 384}"}
    described = describe(model, configs, GenerateOptions(**options))
    precision = "bf16" if conditions["precision"] == "bfloat16" else "fp32"
    parts = dict(described["bytes"][precision])
    return {"bytes": parts.pop("sum"), "parts": parts, "source": "lipcast info, without libraries"}


def _planned(settings: Mapping[str, Value], options: Mapping[str, Any]) -> dict[str, Any]:
    from lipcast.cli.plan import plan_request
    from lipcast.planning.planner import make_plan

    try:
        plan = make_plan(plan_request({"model": "tiny", **settings, **options}))
    except LipcastError as error:
        return {"reason": str(error)}
    parts = {part.name: part.num_bytes for part in plan.generate_parts}
    return {
        "bytes": plan.vram_bytes,
        "block_s": plan.time.block_s,
        "parts": parts,
        "source": "lipcast plan",
    }


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
