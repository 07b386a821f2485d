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

import click

from lipcast.cli import sweep
from lipcast.cli.command import Option, Section, command
from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.console import Console
from lipcast.cli.info import describe
from lipcast.cli.options import LORA, MODEL, OPTIONS, options_from
from lipcast.cli.request import DEFAULT_MODEL, generate_options, precision
from lipcast.cli.types import COUNT
from lipcast.config.generate_options import OPTION_NAMES, SCHEDULES, GenerateOptions
from lipcast.config.gpu_options import GPU_OPTION_NAMES, GpuOptions
from lipcast.config.memory_options import MEMORY_OPTION_NAMES, MemoryOptions
from lipcast.errors import LipcastError, UsageError
from lipcast.weights.configs import read_configs

if TYPE_CHECKING:
    from lipcast.lab.bench import BenchRow

_LEFT_OUT = frozenset(
    {"image", "audio", "prompt", "output", "num_clip", "start_frame", "base_seed", "verbose"}
)
_BLOCKS = (
    Option(
        "num_blocks", "Blocks to measure.",
        type=COUNT, metavar="N", show_default="8, or the matrix's",
    ),
    Option(
        "warm_up_blocks", "Blocks before them, which do not count.",
        type=COUNT, metavar="N", show_default="4, or the matrix's",
    ),
)  # fmt: skip
_SHARED = tuple(
    option
    for option in OPTIONS
    if option.name not in _LEFT_OUT and option.section is not Section.FILES
)
_OWN = frozenset(option.name for option in (*_BLOCKS, *sweep.SWEEP_OPTIONS))
_BLOCK_BUDGET_S = 0.48
"""Video seconds of a block: the time it may take for real time."""


@command(
    "bench",
    (*_BLOCKS, MODEL, LORA, *_SHARED, *sweep.SWEEP_OPTIONS),
    given_only=True,
    examples=(
        "lipcast bench --model tiny",
        'lipcast bench --model tiny --size "128*128" --sample_steps 3',
        "lipcast bench --model tiny --device cpu --gpus 2",
        "lipcast bench --repeats 5 --sample_steps 3",
        "lipcast bench --preset low-vram-study --results study.jsonl --resume",
    ),
)
def bench(console: Console, **flags: Any) -> None:
    """Measure the speed of this machine, part by part.

    Seconds per block are split into speech, transformer, VAE and file, for both schedules.

    Close other programs first. The last line of standard output is one JSON document.

    With --repeats one setting is measured in that many new processes: median, least and greatest. A sweep
    (--matrix, --preset) measures every cell of a matrix in a process of its own, and appends to a file of
    results.
    """
    own = {name: value for name, value in flags.items() if name in _OWN}
    shared = {name: value for name, value in flags.items() if name not in _OWN}
    accepted_flags(shared)
    if {"matrix", "preset", "repeats"} & set(own):
        sweep.run(own, shared, console)
        return
    if unused := sorted(set(own) & {"results", "resume", "timeout_s"}):
        raise UsageError(f"--{unused[0]}: needs --matrix, --preset or --repeats beside it")
    _measure(own, shared, console)


def _measure(counts: Mapping[str, int], flags: Mapping[str, Any], console: Console) -> None:
    expected = generate_options(flags)  # what is wrong with it is told before minutes of loading
    options = {name: value for name, value in flags.items() if name in OPTION_NAMES}
    from lipcast.api import load
    from lipcast.lab import bench as lab

    # Two videos at a time would share a budget, or are more than several devices make.
    is_bounded = any(name in flags for name in (*MEMORY_OPTION_NAMES, *GPU_OPTION_NAMES))
    schedules = SCHEDULES[:1] if is_bounded else SCHEDULES
    if expected.schedule is not None:
        schedules = (expected.schedule,)
        del options["schedule"]
    name = flags.get("model", DEFAULT_MODEL)
    how: dict[str, Any] = {
        "device": flags.get("device"),
        "precision": precision(flags),
        "loras": flags.get("lora", ()),
        "memory_options": options_from(MemoryOptions, flags),
        "gpu_options": options_from(GpuOptions, flags),
    }
    expected = options_from(GenerateOptions, options)
    with closing(load(name, expected=expected, **how)) as model:
        rows = lab.bench(model, schedules=schedules, **counts, **options)
    if not console.as_json:
        click.echo(_table(rows), err=True)
    conditions = lab.conditions(model)
    document = {"conditions": conditions, "options": options}
    document["predicted"] = _predicted(flags, options, conditions)
    click.echo(json.dumps(document | {"rows": [asdict(row) for row in rows]}))


def _predicted(
    flags: Mapping[str, Any], options: Mapping[str, Any], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return bytes by part: the planner's on a GPU, those that `lipcast info` counts on a CPU."""
    if conditions["gpu"]:
        return _planned({"model": DEFAULT_MODEL, **flags})
    model = flags.get("model", DEFAULT_MODEL)
    configs = read_configs(model)
    if "size" not in options:
        options = {**options, "size": f"{configs.dit.height or 704}*{configs.dit.width or 384}"}
    described = describe(model, configs, GenerateOptions(**options))
    kind = "bf16" if conditions["precision"] == "bfloat16" else "fp32"
    parts = dict(described["bytes"][kind])
    return {"bytes": parts.pop("sum"), "parts": parts, "source": "lipcast info, without libraries"}


def _planned(flags: Mapping[str, Any]) -> dict[str, Any]:
    from lipcast.cli.plan import plan_request
    from lipcast.planning.planner import make_plan

    try:
        plan = make_plan(plan_request(flags))
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
    """Return the seconds per block of 12 frames, median."""
    head = f"{'s per block':<12}{'speech':>8}{'DiT':>8}{'VAE':>8}{'file':>8}{'total':>8}{'fps':>8}"
    lines = [f"{head}{'x real time':>13}{'first frame':>13}"]
    for row in rows:
        parts = "".join(f"{seconds:8.3f}" for seconds in row.parts.values())
        lines.append(
            f"{row.schedule:<12}{parts}{row.block_s:8.3f}{row.frames_per_s:8.1f}"
            f"{row.block_s / _BLOCK_BUDGET_S:13.2f}{row.first_frame_s:12.1f}s"
        )
    return "\n".join(lines)
