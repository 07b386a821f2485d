"""What else could be done: the ladder of fallbacks below a plan, and the alternatives beside it.

Inputs: a Plan or a PlanRequest. Outputs: `FallbackPlan`s and `Alternative`s with predicted bytes and
seconds. A fallback is a change of the request; they add up. Those that keep the video come first, those
that change it only where the user allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lipcast.config.fallbacks import KEEPING, Fallback
from lipcast.config.generate_options import SCHEDULES, parse_size
from lipcast.config.geometry import Geometry, fit_size
from lipcast.config.precision import KVPrecision, Precision
from lipcast.errors import MemoryBudgetError
from lipcast.planning.plan import Budget, Plan, PlanConfig, PlanConstraints, PlanRequest
from lipcast.planning.planner import make_plan
from lipcast.planning.search import least_vram, tile_grids

SIZE_STEPS = ("1280*720", "832*480", "704*384", "688*368", "512*320", "384*256")
_UNLIMITED = Budget(2**50, 2**50)


@dataclass(frozen=True, slots=True)
class FallbackPlan:
    """A fallback that is taken after all those before it."""

    fallback: Fallback
    plan: Plan
    bytes_before: int
    """GPU memory predicted before it; after it: `plan.vram_bytes`."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another choice and what it would cost: a plan, or the GPU memory that it needs."""

    name: str
    plan: Plan | None
    needed_vram_bytes: int | None
    """Where there is no plan: the smallest GPU budget that works; None: no amount does."""


def default_fallbacks(request: PlanRequest, *, allow_degrade: bool = False) -> tuple[Fallback, ...]:
    """Return the fallbacks, in order, where the user gave none."""
    keeping = tuple(Fallback(name) for name in KEEPING if name != "offload")
    return (*keeping, *_degrading(request)) if allow_degrade else keeping


def _degrading(request: PlanRequest) -> Iterator[Fallback]:
    geometry = request.geometry
    if geometry.window > 8:
        yield Fallback("infer_frames", "32")
    area = geometry.height * geometry.width
    yield from (Fallback("size", size) for size in SIZE_STEPS if parse_size(size) < area)
    if request.sample_steps > 3:
        yield Fallback("sample_steps", "3")


def apply_fallback(request: PlanRequest, fallback: Fallback) -> PlanRequest:
    """Return the request with one more fallback taken."""
    constraints = request.constraints
    changes: dict[str, PlanConstraints] = {
        "graphs_off": replace(constraints, graphs=False),
        "kv_streamed": replace(constraints, max_resident_ring_layers=0, stream_sink=True),
        "weights_streamed": replace(constraints, max_resident_layers=0),
        "offload": replace(
            constraints, max_resident_layers=0, max_resident_ring_layers=0, stream_sink=True
        ),
        "kv_fp8": replace(constraints, kv_precision="fp8"),
        "tiling": replace(constraints, tiles=_finer(request)),
    }
    if fallback.name in changes:
        return replace(request, constraints=changes[fallback.name])
    if fallback.name == "sample_steps":
        return replace(request, sample_steps=min(request.sample_steps, int(fallback.value)))
    if fallback.name == "infer_frames":
        return replace(request, geometry=_with_window(request, int(fallback.value)))
    if fallback.name == "size":
        return replace(request, geometry=_with_area(request, parse_size(fallback.value)))
    assert fallback.name == "online_decode", fallback
    return request  # always on


def _finer(request: PlanRequest) -> tuple[int, int]:
    """Return the next grid of decoder tiles."""
    grids = tile_grids(request)
    now = grids.index(request.constraints.tiles) if request.constraints.tiles in grids else 0
    return grids[min(now + 1, len(grids) - 1)]


def _with_window(request: PlanRequest, infer_frames: int) -> Geometry:
    window = infer_frames // request.models.vae.temporal_factor
    return replace(request.geometry, window=min(window, request.geometry.window))


def _with_area(request: PlanRequest, area: int) -> Geometry:
    now = request.geometry
    height, width = fit_size(now.height, now.width, area)
    if height * width >= now.height * now.width:
        return now
    infer_frames = now.window * request.models.vae.temporal_factor
    return Geometry.of(
        request.models.dit,
        request.models.vae,
        height=height,
        width=width,
        infer_frames=infer_frames,
    )


def ladder(plan: Plan, fallbacks: tuple[Fallback, ...]) -> tuple[FallbackPlan, ...]:
    """Return the fallbacks below a plan, each added to those before it, without those that free nothing."""
    found: list[FallbackPlan] = []
    request = _pinned(plan)
    for fallback in fallbacks:
        before = found[-1].plan if found else plan
        budget = replace(request.budget, vram_bytes=before.vram_bytes)
        tried = replace(apply_fallback(request, fallback), budget=budget)
        try:
            after = make_plan(tried)
        except MemoryBudgetError:
            continue  # host memory has no room for what would leave the GPU
        if after.generate_bytes < before.generate_bytes:
            request = tried
            found.append(FallbackPlan(fallback, after, before.vram_bytes))
    return tuple(found)


def _pinned(plan: Plan) -> PlanRequest:
    """Return the request that allows this plan and what a fallback adds.

    The schedule is that of the plan: a session under way cannot change it.
    """
    config = plan.config
    constraints = PlanConstraints(
        precision=config.precision,
        kv_precision=config.kv_precision,
        schedule=config.schedule,
        max_resident_layers=plan.resident_layers,
        max_resident_ring_layers=plan.resident_ring_layers,
        stream_sink=config.sink_streamed,
        tiles=config.tiles,
        text_encoder=plan.request.constraints.text_encoder,
        speech_encoder=plan.speech_encoder,
        graphs=None if config.graphs else False,
    )
    return replace(plan.request, constraints=constraints)


def alternatives(plan: Plan) -> tuple[Alternative, ...]:
    """Return a plan for each other choice, the rest chosen anew under the same budget."""
    return tuple(_weigh(name, request) for name, request in _variants(plan))


def _weigh(name: str, request: PlanRequest) -> Alternative:
    try:
        return Alternative(name, make_plan(request), None)
    except MemoryBudgetError:
        return Alternative(name, None, least_vram(request))


def _variants(plan: Plan) -> Iterator[tuple[str, PlanRequest]]:
    request, config = plan.request, plan.config
    yield "everything on the GPU", replace(request, budget=_UNLIMITED)
    for name, constraints in _other_constraints(config, request.constraints):
        yield name, replace(request, constraints=constraints)
    yield "all weights streamed", apply_fallback(request, Fallback("weights_streamed"))
    yield "all KV streamed", apply_fallback(request, Fallback("kv_streamed"))
    if request.fold_last_step and request.sample_steps > 1:
        yield "last step not folded", replace(request, fold_last_step=False)
    if request.geometry.window > 8:
        yield "infer_frames 32", apply_fallback(request, Fallback("infer_frames", "32"))
    if request.geometry.height * request.geometry.width > parse_size(SIZE_STEPS[-1]):
        yield f"size {SIZE_STEPS[-1]}", apply_fallback(request, Fallback("size", SIZE_STEPS[-1]))


def _other_constraints(
    config: PlanConfig, constraints: PlanConstraints
) -> Iterator[tuple[str, PlanConstraints]]:
    precisions: tuple[Precision, ...] = ("bf16", "fp8", "int4")
    for precision in precisions:
        if precision != config.precision:
            yield f"weights in {precision}", replace(constraints, precision=precision)
    ring: KVPrecision = "fp8" if config.kv_precision == "bf16" else "bf16"
    yield f"KV rings in {ring}", replace(constraints, kv_precision=ring)
    for schedule in SCHEDULES:
        if schedule != config.schedule:
            yield f"{schedule} schedule", replace(constraints, schedule=schedule)
