"""Several GPUs: layouts that fit, their timeline, and the published arithmetic of 4x24 GB."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fsdp_arithmetic import USABLE_GIB, explain_fsdp, published_figures
from hypothesis import given
from hypothesis import strategies as st
from test_planner import ask

from lipcast.config.units import GIB
from lipcast.errors import MemoryBudgetError, UsageError
from lipcast.planning.layouts import (
    Layout,
    LayoutConstraints,
    layouts,
    plan_layouts,
    stage_steps,
    timeline,
    with_enough_steps,
)
from lipcast.planning.plan import PlanConstraints, WorkShare
from lipcast.planning.planner import make_plan


@given(st.integers(1, 8), st.integers(1, 8))
def test_stages_own_every_step_once(num_steps: int, num_stages: int) -> None:
    stages = stage_steps(num_steps, min(num_stages, num_steps))
    assert [step for own in stages for step in own] == list(range(num_steps))
    counts = [len(own) for own in stages]
    assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 5, 8])
def test_layouts_use_the_gpus_and_divide_the_heads(num_gpus: int) -> None:
    request = ask("h100", 512)
    found = layouts(request, num_gpus, LayoutConstraints())
    assert found and len(set(found)) == len(found)
    for layout in found:
        assert num_gpus - 1 <= layout.num_gpus <= num_gpus
        assert layout.stages <= request.num_evaluations
        assert 40 % layout.ulysses == 0


def test_more_gpus_are_never_slower() -> None:
    request = ask("h100", 1024)
    times = [plan_layouts(request, n)[0].block_s for n in (1, 2, 3, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] == make_plan(request).time.block_s


def test_every_rank_fits_its_card() -> None:
    request = ask("rtx4090", 256)
    for plan in plan_layouts(request, 4):
        assert plan.vram_bytes <= request.budget.vram_bytes
        assert plan.block_s == max(rank.busy_s for rank in plan.ranks)
        used = sum(rank.num_ranks * rank.ram_bytes for rank in plan.ranks)
        assert used <= request.budget.ram_bytes


def test_ulysses_divides_rings_and_sharding_divides_weights() -> None:
    request = replace(
        ask("h100", 512), constraints=PlanConstraints(precision="fp8", kv_precision="bf16")
    )
    whole = make_plan(request)
    parts = {
        name: {part.name: part.num_bytes for part in make_plan(request, share).generate_parts}
        for name, share in (
            ("whole", WorkShare()),
            ("ulysses", WorkShare(ulysses=4)),
            ("sharded", WorkShare(shards=4)),
            ("stage", WorkShare(num_steps=1)),
        )
    }
    rings, weights = "KV rings", "weights of layers"
    assert parts["whole"][rings] == 4 * parts["ulysses"][rings] == 3 * parts["stage"][rings]
    widest = 351_755_264  # what a tick needs of a layer with its injector, fp8
    assert parts["sharded"][weights] == -(-parts["whole"][weights] // 4) + 2 * widest
    assert make_plan(request, WorkShare(ulysses=4)).time.compute_s < whole.time.compute_s / 3


@pytest.mark.parametrize(("ulysses", "most_heads"), [(3, 14), (7, 6), (39, 2), (40, 1)])
def test_uneven_heads_are_planned_for_the_rank_with_the_most(ulysses: int, most_heads: int) -> None:
    request = replace(
        ask("h100", 512), constraints=PlanConstraints(precision="fp8", kv_precision="bf16")
    )
    whole, part = make_plan(request), make_plan(request, WorkShare(ulysses=ulysses))
    rings = [
        next(item.num_bytes for item in plan.generate_parts if item.name == "KV rings")
        for plan in (whole, part)
    ]
    assert rings[1] * 40 == rings[0] * most_heads
    assert part.time.compute_s < whole.time.compute_s


@given(st.integers(1, 60))
def test_any_degree_up_to_the_heads_is_a_layout(ulysses: int) -> None:
    wanted = LayoutConstraints(num_gpus_dit=ulysses, ulysses_size=ulysses)
    found = layouts(ask("h100", 512), ulysses, wanted)
    assert bool(found) == (ulysses <= 40)


def test_heads_are_shared_unevenly_only_where_nothing_else_is_asked_for() -> None:
    request = ask("h100", 512)
    three = layouts(request, 3, LayoutConstraints())
    assert {layout.ulysses for layout in three} == {1, 2}
    seven = layouts(request, 7, LayoutConstraints(num_gpus_dit=7))
    assert {(layout.stages, layout.ulysses) for layout in seven} == {(1, 7)}
    nine = LayoutConstraints(num_gpus_dit=9, ulysses_size=3)
    three_steps = replace(request, sample_steps=3)
    assert not with_enough_steps(three_steps, 9, nine).fold_last_step


def test_the_published_layout() -> None:
    """Three steps on three cards, the decoder on the fourth: 688*368, 32 frames."""
    request = replace(
        ask("rtx4090", 256, height=640, infer_frames=32), sample_steps=3, fold_last_step=False
    )
    constraints = LayoutConstraints(num_gpus_dit=3, ulysses_size=1, vae_rank=True)
    best = plan_layouts(request, 4, constraints)[0]
    assert best.layout == Layout(stages=3, ulysses=1, sharded=False, vae_rank=True)
    assert [rank.steps for rank in best.ranks] == [(0,), (1,), (2,), ()]
    assert best.vram_bytes <= request.budget.vram_bytes


def test_impossible_layouts_are_refused_with_near_ones() -> None:
    request = ask("h100", 512)
    with pytest.raises(UsageError, match=r"5 GPUs as 1 stage, Ulysses 5"):
        plan_layouts(request, 4, LayoutConstraints(num_gpus_dit=4, ulysses_size=3))
    with pytest.raises(UsageError, match="the model has 40 attention heads"):
        plan_layouts(request, 41, LayoutConstraints(ulysses_size=41))


def test_a_stage_per_step_needs_every_step() -> None:
    """Three steps make two evaluations when the last is folded, but three stages were asked for."""
    request = replace(ask("rtx4090", 256), sample_steps=3)
    three = LayoutConstraints(num_gpus_dit=3, ulysses_size=1)
    assert not layouts(request, 4, three)
    found = with_enough_steps(request, 4, three)
    assert not found.fold_last_step and layouts(found, 4, three)
    assert with_enough_steps(request, 4, LayoutConstraints()) == request
    hopeless = LayoutConstraints(num_gpus_dit=150)
    assert with_enough_steps(request, 4, hopeless) == request


def test_sharded_weights_are_plain_and_may_be_in_host_memory() -> None:
    request = ask("rtx4090", 256)
    layout = LayoutConstraints(num_gpus_dit=3, ulysses_size=1, sharded=True, vae_rank=True)
    here = plan_layouts(request, 4, layout)[0]
    offloaded = replace(request, constraints=replace(request.constraints, max_resident_layers=0))
    there = plan_layouts(offloaded, 4, layout)[0]
    plans = [plan.ranks[0].plan for plan in (here, there)]
    assert plans[0] is not None and plans[1] is not None
    assert {plan.config.precision for plan in plans} == {"bf16"}
    saved = plans[0].generate_bytes - plans[1].generate_bytes
    assert saved > 7 * GIB and plans[1].ram_bytes - plans[0].ram_bytes > 7 * GIB
    fp8 = replace(request, constraints=replace(request.constraints, precision="fp8"))
    with pytest.raises(MemoryBudgetError):
        plan_layouts(fp8, 4, layout)


def test_layouts_that_do_not_fit_are_refused_with_the_least_need() -> None:
    with pytest.raises(MemoryBudgetError, match=r"at least \d+ bytes of memory per GPU"):
        plan_layouts(ask("rtx4090", 64, 2), 2)


def test_the_timeline_shows_the_pipeline() -> None:
    best = plan_layouts(ask("rtx4090", 256), 4)[0]
    assert best.layout.vae_rank and best.layout.stages == 3
    lines = timeline(best, num_blocks=4, width=72)
    assert len(lines) == len(best.ranks) + 1
    rows = [line.split("|")[1] for line in lines[:-1]]
    assert all(len(row) == 72 for row in rows)
    for row in rows:
        assert "".join(sorted(row.replace(".", ""))) == row.replace(".", "")
        assert set("ABCD") <= set(row)
    starts = [row.index("A") for row in rows]
    assert starts == sorted(starts) and len(set(starts)) == len(starts)


# The published arithmetic


def test_published_figures_of_sharding_are_reproduced() -> None:
    claims = {claim.what: claim for claim in published_figures()}
    for what in ("resident, 48 frames", "unshard", "peak, 48 frames"):
        assert claims[what].error == pytest.approx(0, abs=0.005), what
    assert claims["peak, 32 frames at 688*368"].error == pytest.approx(0, abs=0.03)
    unexplained = [claim.what for claim in claims.values() if claim.error is None]
    assert unexplained == ["the same with online decode"]


def test_the_unshard_is_everything_outside_the_blocks() -> None:
    told = explain_fsdp(height=704, width=384, infer_frames=48)
    assert told.unshard.num_bytes == 2 * (16_295_755_609 - 40 * 351_394_304)
    assert told.peak_bytes / GIB > USABLE_GIB > told.resident_bytes / GIB
    assert told.lipcast_unshard.num_bytes < told.unshard.num_bytes / 2
