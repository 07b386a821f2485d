"""Fallbacks free memory one after the other; alternatives say what another choice would cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import ask

from lipcast.config.fallbacks import Fallback, parse_fallbacks
from lipcast.errors import MemoryBudgetError, UsageError
from lipcast.planning.fallbacks import (
    alternatives,
    apply_fallback,
    default_fallbacks,
    ladder,
)
from lipcast.planning.plan import Budget
from lipcast.planning.planner import make_plan

PUBLISHED = "online_decode, infer_frames=32, size=384*256, sample_steps=3, offload"


def test_the_default_order_keeps_the_picture() -> None:
    request = ask("rtx4090", 64)
    keeping = default_fallbacks(request)
    assert [str(fallback) for fallback in keeping] == [
        "online_decode",
        "graphs_off",
        "kv_streamed",
        "weights_streamed",
        "kv_fp8",
        "tiling",
    ]
    assert all(fallback.keeps_the_picture for fallback in keeping)
    degrading = default_fallbacks(request, allow_degrade=True)[len(keeping) :]
    assert [str(fallback) for fallback in degrading] == [
        "infer_frames=32",
        "size=688*368",
        "size=512*320",
        "size=384*256",
        "sample_steps=3",
    ]
    assert not any(fallback.keeps_the_picture for fallback in degrading)


@pytest.mark.parametrize("card", ["h100", "rtx4090", "rtx4060ti", "rtx3060"])
def test_every_fallback_frees_memory(card: str) -> None:
    plan = make_plan(ask(card, 64))
    taken = ladder(plan, default_fallbacks(plan.request, allow_degrade=True))
    assert taken
    before = [plan.vram_bytes, *(fallback.plan.vram_bytes for fallback in taken)]
    assert before == sorted(before, reverse=True) and len(set(before)) == len(before)
    assert [fallback.bytes_before for fallback in taken] == before[:-1]


def test_a_resident_plan_falls_to_streaming() -> None:
    plan = make_plan(ask("h100", 128))
    taken = {
        str(fallback.fallback): fallback.plan
        for fallback in ladder(plan, default_fallbacks(plan.request))
    }
    assert "online_decode" not in taken, "decoding is always online, so nothing is left to free"
    assert set(taken["kv_streamed"].ring_layers) == {"pinned"}
    assert set(taken["kv_streamed"].layers) == {"resident"}
    assert set(taken["weights_streamed"].layers) == {"pinned"}
    assert taken["kv_fp8"].config.kv_precision == "fp8"
    assert taken["tiling"].config.tiles == (2, 1)


def test_without_host_memory_nothing_is_streamed() -> None:
    plan = make_plan(ask("h100", 4))
    taken = {str(fallback.fallback) for fallback in ladder(plan, default_fallbacks(plan.request))}
    assert "kv_streamed" not in taken and "kv_fp8" in taken


def test_the_published_order() -> None:
    fallbacks = parse_fallbacks(PUBLISHED)
    assert ", ".join(map(str, fallbacks)) == PUBLISHED
    request = ask("rtx4090", 64)
    for fallback in fallbacks:
        request = apply_fallback(request, fallback)
    assert request.geometry.window == 8
    assert (request.geometry.height, request.geometry.width) == (384, 256)
    assert request.sample_steps == 3
    assert set(make_plan(request).layers) == {"pinned"}


def test_a_fallback_never_raises_quality() -> None:
    request = ask("rtx4090", 64, height=384, width=256, infer_frames=24)
    for text in ("size=704*384", "infer_frames=48", "sample_steps=8"):
        (fallback,) = parse_fallbacks(text)
        assert apply_fallback(request, fallback) == request


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "infer_frames",
        "size=big",
        "kv_fp8=1",
        "infer_frames=30",
        "sample_steps=0",
        "size",
    ],
)
def test_wrong_fallbacks_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_fallbacks(text)


def test_tiling_goes_on_to_the_finest_grid() -> None:
    request = ask("rtx4090", 64)
    grids = []
    for _ in range(8):
        request = apply_fallback(request, Fallback("tiling"))
        assert request.constraints.tiles is not None
        grids.append(request.constraints.tiles)
    areas = [rows * columns for rows, columns in grids]
    assert areas == sorted(areas) and areas[-1] == areas[-2] == 16


@settings(max_examples=5, deadline=None)
@given(st.integers(7, 80))
def test_alternatives_stay_in_the_budget_or_say_what_they_need(vram_gib: int) -> None:
    plan = make_plan(ask("h100", 64, vram_gib))
    for other in alternatives(plan):
        if other.plan is None:
            assert other.needed_vram_bytes is None or other.needed_vram_bytes > plan.vram_bytes
        elif other.name != "everything on the GPU":
            assert other.plan.vram_bytes <= plan.request.budget.vram_bytes
    names = [other.name for other in alternatives(plan)]
    assert len(names) == len(set(names)) >= 9


def test_alternatives_are_never_faster_at_the_same_picture() -> None:
    plan = make_plan(ask("rtx4060ti", 32))
    changing = ("infer_frames", "size", "everything", "weights in int4")
    for other in alternatives(plan):
        if other.plan is not None and not other.name.startswith(changing):
            assert other.plan.time.block_s >= plan.time.block_s


def test_an_alternative_that_does_not_fit_names_its_need() -> None:
    request = ask("rtx4060", 24)
    plan = make_plan(request)
    needs = {o.name: o.needed_vram_bytes for o in alternatives(plan) if o.plan is None}
    for name, need in needs.items():
        assert need is None or need > request.budget.vram_bytes, name
    resident = replace(request, budget=Budget(request.budget.vram_bytes, 4 * 2**30))
    with pytest.raises(MemoryBudgetError):
        make_plan(resident)
