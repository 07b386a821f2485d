"""Plans as tables.

Inputs: plans, alternatives, fallbacks, layouts. Output: text, 100 columns wide where nothing else is known.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.table import Table

from lipcast.config.units import GIB, format_bytes
from lipcast.planning.fallbacks import Alternative, FallbackPlan
from lipcast.planning.layouts import LayoutPlan, timeline
from lipcast.planning.plan import MemoryItem, Plan, PlanRequest, total
from lipcast.planning.start import start_time
from lipcast.planning.table import places

_WIDTH = 100
_NUM_LAYOUTS = 6
_LEAST_SHOWN_S = 0.0005
"""A stream of less would be shown as 0.000."""


def plan_text(
    plan: Plan, alternatives: Sequence[Alternative] = (), ladder: Sequence[FallbackPlan] = ()
) -> str:
    """Return one plan with its alternatives and fallbacks, as text."""
    pieces: list[RenderableType] = [
        _heading(plan),
        _placements(plan),
        _memory(plan),
        *([_link(plan)] if plan.to_gpu_parts else []),
        _seconds(plan),
        _start(plan),
    ]
    if alternatives:
        pieces.append(_alternatives(plan, alternatives))
    if ladder:
        pieces.append(_ladder(ladder))
    return _text(pieces)


def layouts_text(request: PlanRequest, layouts: Sequence[LayoutPlan]) -> str:
    """Return the best layout in full, its timeline, and the other layouts, as text."""
    best = layouts[0]
    title = f"{best.layout.num_gpus} x {request.hardware.label}: {best.layout}"
    lines = "\n".join(timeline(best))
    note = "one letter per block, dots: waiting"
    return _text(
        [
            _video(request),
            f"{title}\n{_speed(best.block_s, best.frames_per_s, best.first_block_s)}\n",
            _ranks(best),
            f"{lines}\n{note}\n",
            _other_layouts(layouts),
        ]
    )


def _text(pieces: Iterable[RenderableType]) -> str:
    on_terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size().columns, _WIDTH) if on_terminal else _WIDTH
    out = io.StringIO()
    console = RichConsole(
        file=out, width=width, force_terminal=False, highlight=False, markup=False
    )
    for piece in pieces:
        console.print(piece, soft_wrap=isinstance(piece, str))
    # Columns are padded; the padding at the end of a line is of no use.
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(title: str, *columns: str) -> Table:
    """Return an empty table; all but the first column and those called "what" hold figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        words = index == 0 or column == "what"
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    return table


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _speed(block_s: float, frames_per_s: float, first_block_s: float) -> str:
    return (
        f"{block_s:.3f} s per block, {frames_per_s:.1f} frames/s, "
        f"first pictures after {first_block_s:.2f} s"
    )


def _video(request: PlanRequest) -> str:
    geometry = request.geometry
    folded = ", the last one folded" if request.num_evaluations < request.sample_steps else ""
    return (
        f"{geometry.width} x {geometry.height} pixels, {geometry.tokens_per_frame} tokens per latent "
        f"frame, window {geometry.window} latent frames, {request.sample_steps} steps{folded}"
    )


def _heading(plan: Plan) -> str:
    request = plan.request
    hardware, budget = request.hardware, request.budget
    machine = (
        f"{hardware.label} (rates: {hardware.source}), {format_bytes(budget.vram_bytes)} of GPU "
        f"memory, {format_bytes(budget.ram_bytes)} of host memory"
    )
    speed = _speed(plan.time.block_s, plan.frames_per_s, plan.first_block_s)
    return f"{machine}\n{_video(request)}\n{speed}\n"


def _placements(plan: Plan) -> Table:
    config = plan.config
    rows, columns = config.tiles
    tiled = f"in {rows}x{columns} tiles" if rows * columns > 1 else "whole pictures"
    table = _table("What goes where", "part", "what")
    lanes = f"{plan.num_lanes} lane{'s' * (plan.num_lanes > 1)} a tick"
    recorded = ", recorded as CUDA graphs" * config.graphs
    table.add_row("schedule", f"{config.schedule}, {lanes}{recorded}")
    slots = f", through {config.num_slots} slots" if config.num_slots else ""
    table.add_row("weights of layers", f"{config.precision}: {places(plan.layers)}{slots}")
    table.add_row("KV rings", f"{config.kv_precision}: layers {places(plan.ring_layers)}")
    table.add_row(
        "sink", "pinned, streamed with the layers" if config.sink_streamed else "on the GPU"
    )
    table.add_row("decoder", f"online, {tiled}")
    where = {"device": "on the GPU", "host": "in host memory", "disk": "mapped from its file"}
    table.add_row("text encoder", where[plan.text_encoder])
    table.add_row("speech encoder", where[plan.speech_encoder])
    return table


def _memory(plan: Plan) -> Table:
    table = _table("Memory by part, GiB", "part", "GPU", "host")
    generate = {part.name: part.num_bytes for part in plan.generate_parts}
    host = {part.name: part.num_bytes for part in plan.ram_parts}
    for name in dict.fromkeys((*generate, *host)):
        cells = (_gib(parts[name]) if name in parts else "" for parts in (generate, host))
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("while blocks are made", _gib(total(plan.generate_parts)), "")
    table.add_row("while the portrait is encoded", _gib(total(plan.prepare_parts)), "")
    table.add_row("peak", _gib(plan.vram_bytes), _gib(plan.ram_bytes))
    budget = plan.request.budget
    table.add_row("budget", _gib(budget.vram_bytes), _gib(budget.ram_bytes))
    return table


def _link(plan: Plan) -> Table:
    table = _table("Over the link per block, GB", "part", "to the GPU", "to the host")
    sides = [
        {p.name: p.num_bytes for p in parts} for parts in (plan.to_gpu_parts, plan.to_host_parts)
    ]
    for name in dict.fromkeys(chain.from_iterable(sides)):
        table.add_row(name, *(_gb(side[name]) if name in side else "" for side in sides))
    table.add_section()
    table.add_row("together", *(_gb(sum(side.values())) for side in sides))
    return table


def _seconds(plan: Plan) -> Table:
    time = plan.time
    table = _table("Seconds per block", "stream", "s")
    parts = (
        ("compute: transformer", time.compute_s),
        ("compute: decoder", time.decode_s),
        ("copies over the link", time.copy_s),
        ("reading from disk", time.disk_s),
    )
    _add_seconds(table, parts, digits=3)
    if time.hidden_s >= _LEAST_SHOWN_S:
        table.add_row("hidden by overlap", f"-{time.hidden_s:.3f}")
    table.add_section()
    table.add_row(f"block (bottleneck: {time.bottleneck})", f"{time.block_s:.3f}")
    return table


def _add_seconds(table: Table, parts: Iterable[tuple[str, float]], *, digits: int) -> None:
    """Add a row for every part that takes any time."""
    for name, value in parts:
        if value:
            table.add_row(name, f"{value:.{digits}f}")


def _start(plan: Plan) -> Table:
    start = start_time(plan)
    table = _table("From the start to the first pictures, s", "part", "s")
    parts = (
        ("Python, torch and CUDA", start.process_s),
        ("reading the published weights", start.read_s),
        ("to the GPU and quantised, while reading", start.quantise_s),
        ("locking host memory", start.pin_s),
        ("portrait and sink", start.prepare_s),
        ("first block", start.first_block_s),
    )
    _add_seconds(table, parts, digits=1)
    table.add_section()
    table.add_row("first pictures", f"{start.total_s:.1f}")
    converted = start_time(plan, converted=True).total_s
    table.add_row("with a converted checkpoint", f"{converted:.1f}")
    return table


def _alternatives(plan: Plan, alternatives: Sequence[Alternative]) -> Table:
    table = _table(
        "Other choices under the same budget", "choice", "GPU", "host", "s", "frames/s", "what"
    )
    for other in alternatives:
        if other.plan is None:
            table.add_row(other.name, "", "", "", "", _lack(other))
            continue
        theirs = other.plan
        memory = _gib(theirs.vram_bytes), _gib(theirs.ram_bytes)
        speed = f"{theirs.time.block_s:.3f}", f"{theirs.frames_per_s:.1f}"
        table.add_row(other.name, *memory, *speed, _comparison(plan, theirs))
    return table


def _lack(alternative: Alternative) -> str:
    need = alternative.needed_vram_bytes
    return "needs more host memory" if need is None else f"needs {_gib(need)} GiB of GPU memory"


def _comparison(plan: Plan, other: Plan) -> str:
    ratio = other.time.block_s / plan.time.block_s - 1
    if abs(ratio) < 0.0005:
        return "as fast"
    return f"{100 * abs(ratio):.1f} % {'slower' if ratio > 0 else 'faster'}"


def _ladder(ladder: Sequence[FallbackPlan]) -> Table:
    table = _table("If memory runs out all the same", "then", "GPU", "s", "what")
    for fallback in ladder:
        before, after = fallback.bytes_before, fallback.plan.vram_bytes
        picture = "same picture" if fallback.fallback.keeps_the_picture else "changes the picture"
        seconds = f"{fallback.plan.time.block_s:.3f}"
        table.add_row(str(fallback.fallback), f"{_gib(before)} -> {_gib(after)}", seconds, picture)
    return table


def _ranks(layout: LayoutPlan) -> Table:
    table = _table("Each GPU", "rank", "GPUs", "steps", "GPU, GiB", "host, GiB", "busy, s", "what")
    for rank in layout.ranks:
        steps = ", ".join(str(step + 1) for step in rank.steps)
        memory = _gib(rank.vram_bytes), _gib(rank.ram_bytes)
        table.add_row(
            rank.role,
            str(rank.num_ranks),
            steps,
            *memory,
            f"{rank.busy_s:.3f}",
            _largest(rank.parts),
        )
    return table


def _largest(parts: Sequence[MemoryItem]) -> str:
    """Return the three largest parts, as text."""
    biggest = sorted(parts, key=lambda part: -part.num_bytes)[:3]
    return ", ".join(f"{part.name} {_gib(part.num_bytes)}" for part in biggest)


def _other_layouts(layouts: Sequence[LayoutPlan]) -> Table:
    table = _table("Layouts", "layout", "GPU, GiB", "s per block", "frames/s", "first, s")
    for other in layouts[:_NUM_LAYOUTS]:
        speed = f"{other.block_s:.3f}", f"{other.frames_per_s:.1f}", f"{other.first_block_s:.2f}"
        table.add_row(str(other.layout), _gib(other.vram_bytes), *speed)
    return table
