"""The planner: no plan exceeds its budget, more memory is never slower, refusals name what works."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fsdp_arithmetic import _activations
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipcast.config.generate_options import SCHEDULES
from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig, Models, SpeechShape, TextConfig, VAEConfig
from lipcast.config.precision import KV_PRECISIONS, PRECISIONS, Precision
from lipcast.config.units import GIB
from lipcast.errors import MemoryBudgetError
from lipcast.planning import costs, items, sizes
from lipcast.planning.hardware import Hardware, gpu
from lipcast.planning.plan import (
    Budget,
    Plan,
    PlanConstraints,
    PlanRequest,
    WorkShare,
    total,
)
from lipcast.planning.planner import make_plan
from lipcast.planning.search import least_ram, least_vram
from lipcast.planning.table import plan_document
from lipcast.planning.workload import residency_order
from profiles import examples

PUBLISHED = Models()
PLENTY = 2**50


def ask(
    card: str,
    ram_gib: float,
    vram_gib: float | None = None,
    *,
    height: int = 704,
    width: int = 384,
    infer_frames: int = 48,
) -> PlanRequest:
    """The published model on a card."""
    hardware = gpu(card)
    geometry = Geometry.of(
        PUBLISHED.dit, PUBLISHED.vae, height=height, width=width, infer_frames=infer_frames
    )
    vram = hardware.memory_bytes if vram_gib is None else int(vram_gib * GIB)
    return PlanRequest(geometry, hardware, Budget(vram, int(ram_gib * GIB)), PUBLISHED)


# Random models, pictures and machines


@st.composite
def models(draw: st.DrawFn) -> Models:
    heads, layers = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    injected = draw(st.sets(st.integers(0, layers - 1)))
    dit = DiTConfig(
        dim=heads * draw(st.sampled_from((16, 64, 128))),
        ffn_dim=draw(st.integers(16, 4096)),
        num_heads=heads,
        num_layers=layers,
        text_len=draw(st.integers(1, 512)),
        audio_inject_layers=tuple(sorted(injected)),
    )
    vae = VAEConfig(dim=draw(st.sampled_from((8, 32, 96))), num_res_blocks=draw(st.integers(1, 2)))
    text = TextConfig(num_layers=draw(st.integers(1, 4)), dim=64, dim_attn=64, vocab_size=1000)
    speech = SpeechShape(num_hidden_layers=draw(st.integers(1, 6)))
    return Models(dit, vae, text, speech)


rates = st.floats(8.0, 15.0).map(lambda exponent: 10.0**exponent)


@st.composite
def cards(draw: st.DrawFn) -> Hardware:
    return Hardware(
        name="random",
        label="random",
        memory_bytes=draw(st.integers(0, 2**36)),
        bf16_flops=draw(rates),
        fp8_flops=draw(st.one_of(st.just(0.0), rates)),
        attention_flops=draw(rates),
        memory_bytes_per_s=draw(rates),
        link_bytes_per_s=draw(rates),
        peer_bytes_per_s=draw(rates),
        disk_bytes_per_s=draw(rates),
    )


@st.composite
def constraints(draw: st.DrawFn) -> PlanConstraints:
    def maybe(strategy: st.SearchStrategy[int] | st.SearchStrategy[str]) -> object:
        return draw(st.one_of(st.none(), strategy))

    return PlanConstraints(
        precision=maybe(st.sampled_from(PRECISIONS)),  # type: ignore[arg-type]
        kv_precision=maybe(st.sampled_from(KV_PRECISIONS)),  # type: ignore[arg-type]
        schedule=maybe(st.sampled_from(SCHEDULES)),  # type: ignore[arg-type]
        max_resident_layers=maybe(st.integers(0, 3)),  # type: ignore[arg-type]
        max_resident_ring_layers=maybe(st.integers(0, 3)),  # type: ignore[arg-type]
        text_encoder=maybe(st.sampled_from(("device", "host", "disk"))),  # type: ignore[arg-type]
        speech_encoder=maybe(st.sampled_from(("device", "host"))),  # type: ignore[arg-type]
    )


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    """A request whose budget is around what it needs, below and above."""
    chosen = draw(models())
    sides = st.integers(1, 8).map(lambda n: 64 * n)
    geometry = Geometry.of(
        chosen.dit,
        chosen.vae,
        height=draw(sides),
        width=draw(sides),
        infer_frames=4 * draw(st.integers(3, 12)),
    )
    request = PlanRequest(
        geometry,
        draw(cards()),
        Budget(PLENTY, PLENTY),
        chosen,
        draw(constraints()),
        sample_steps=draw(st.integers(1, 5)),
        fold_last_step=draw(st.booleans()),
    )
    vram, ram = least_vram(request), least_ram(replace(request, budget=Budget(PLENTY, 0)))
    assert vram is not None and ram is not None
    around = st.floats(0.9, 1.6)
    return with_budget(request, int(vram * draw(around)), int(ram * draw(around)))


def with_budget(request: PlanRequest, vram_bytes: int, ram_bytes: int) -> PlanRequest:
    return replace(request, budget=Budget(vram_bytes, ram_bytes))


def seconds(request: PlanRequest) -> float:
    """Seconds per block; a refusal is the slowest answer."""
    try:
        return make_plan(request).time.block_s
    except MemoryBudgetError:
        return float("inf")


def check_constraints(wished: PlanConstraints, plan: Plan) -> None:
    choice = plan.config
    assert wished.precision in {None, choice.precision}
    assert wished.kv_precision in {None, choice.kv_precision}
    assert wished.schedule in {None, choice.schedule}
    for most, got in (
        (wished.max_resident_layers, plan.resident_layers),
        (wished.max_resident_ring_layers, plan.resident_ring_layers),
    ):
        assert most is None or got <= most


@settings(max_examples=examples(40), deadline=None)
@given(requests())
def test_no_plan_exceeds_its_budget_or_ignores_a_wish(request: PlanRequest) -> None:
    try:
        plan = make_plan(request)
    except MemoryBudgetError:
        assume(False)
    assert plan.vram_bytes <= request.budget.vram_bytes
    assert plan.ram_bytes <= request.budget.ram_bytes
    num_layers = request.models.dit.num_layers
    assert (plan.config.num_slots == 0) == (set(plan.layers) == {"resident"})
    assert len(plan.layers) == len(plan.ring_layers) == num_layers
    check_constraints(request.constraints, plan)
    assert request.constraints.text_encoder in {None, plan.text_encoder}
    assert request.constraints.speech_encoder in {None, plan.speech_encoder}
    time = plan.time
    assert time.block_s >= max(time.compute_s + time.decode_s, time.copy_s, time.disk_s) - 1e-6


@settings(max_examples=examples(40), deadline=None)
@given(requests(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_more_memory_is_never_slower(request: PlanRequest, vram: int, ram: int) -> None:
    budget = request.budget
    more = with_budget(request, budget.vram_bytes + vram, budget.ram_bytes + ram)
    assert seconds(more) <= seconds(request)


@settings(max_examples=examples(40), deadline=None)
@given(requests())
def test_the_smallest_budgets_work_and_a_byte_less_does_not(request: PlanRequest) -> None:
    budget = request.budget
    vram, ram = least_vram(request), least_ram(request)
    if vram is not None:
        assert make_plan(with_budget(request, vram, budget.ram_bytes)).vram_bytes <= vram
        with pytest.raises(MemoryBudgetError, match=f"{vram} bytes"):
            make_plan(with_budget(request, vram - 1, budget.ram_bytes))
    if ram is not None:
        assert make_plan(with_budget(request, budget.vram_bytes, ram)).ram_bytes <= ram
        with pytest.raises(MemoryBudgetError):
            make_plan(with_budget(request, budget.vram_bytes, ram - 1))
    fits = (
        vram is not None
        and ram is not None
        and vram <= budget.vram_bytes
        and ram <= budget.ram_bytes
    )
    assert fits == (seconds(request) < float("inf"))


def test_a_refusal_of_both_memories_names_both() -> None:
    request = ask("rtx4060", 0.001, 0.001)
    with pytest.raises(MemoryBudgetError, match=r"of GPU memory and .* bytes.* of host memory"):
        make_plan(request)


# The published model


@pytest.mark.parametrize(
    ("precision", "height", "width", "frames", "loaded", "with_kv", "peak"),
    # Measured on an H100 with the public implementation: four rings, 2800 condition rows.
    [
        ("bf16", 704, 384, 48, 30.5, 72.05, 73.2),
        ("fp8", 704, 384, 48, 15.6, 57.1, 58.3),
        ("bf16", 704, 384, 24, 30.5, 52.7, 53.7),
        ("fp8", 704, 384, 24, 15.6, 37.8, 38.9),
        ("bf16", 640, 384, 48, 30.5, 68.4, 69.4),
        ("bf16", 512, 512, 48, 30.5, 70.8, 71.9),
        ("bf16", 384, 256, 48, 30.5, 47.3, 47.9),
        ("fp8", 384, 256, 24, 15.6, 25.1, 25.7),
    ],
)
def test_measured_memory_of_the_public_implementation(
    precision: Precision,
    height: int,
    width: int,
    frames: int,
    loaded: float,
    with_kv: float,
    peak: float,
) -> None:
    dit = PUBLISHED.dit
    at = Geometry.of(dit, PUBLISHED.vae, height=height, width=width, infer_frames=frames)
    weights = sizes.dit_bytes(dit, precision)
    token = dit.num_layers * sizes.kv_bytes_per_token(dit, "bf16")
    kv = (4 * at.window * at.tokens_per_frame + 2800) * token
    assert weights / GIB == pytest.approx(loaded, rel=0.01)
    assert (weights + kv) / GIB == pytest.approx(with_kv, rel=0.03)
    top = weights + kv + _activations(at.tokens_per_frame)
    assert top / GIB == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize(("vram_gib", "share"), [(24, 0.97), (16, 0.95), (12, 0.93), (8, 0.93)])
def test_streaming_keeps_the_speed_of_an_h100(vram_gib: float, share: float) -> None:
    resident = make_plan(ask("h100", 128)).frames_per_s
    assert make_plan(ask("h100", 128, vram_gib)).frames_per_s >= share * resident


@pytest.mark.parametrize(
    ("wished", "most_gb", "least_frames_per_s"),
    [
        ({}, 28.0, 20.0),
        ({"kv_precision": "int4"}, 22.7, 20.0),
        ({"precision": "int4", "kv_precision": "fp8", "schedule": "wavefront"}, 24.0, 13.0),
        ({"precision": "int4", "kv_precision": "int4", "schedule": "wavefront"}, 17.0, 13.0),
    ],
    ids=str,
)
def test_what_crosses_the_link_in_8_gib(
    wished: dict[str, Any], most_gb: float, least_frames_per_s: float
) -> None:
    """At 704*384, on an H100, by the plan's own list; the budgets may only fall. 34.5 GB at first."""
    request = ask("h100", 64, 8)
    plan = make_plan(replace(request, constraints=PlanConstraints(**wished)))
    to_gpu = total(plan.to_gpu_parts)
    assert 10e9 < to_gpu <= most_gb * 1e9 and plan.frames_per_s >= least_frames_per_s
    seconds = costs.copy_seconds(
        gpu("h100"), to_gpu_bytes=to_gpu, to_host_bytes=total(plan.to_host_parts)
    )
    assert plan.time.copy_s == pytest.approx(seconds)


def test_an_h100_keeps_everything_and_needs_nothing_else() -> None:
    plan = make_plan(ask("h100", 64))
    assert set(plan.layers) == set(plan.ring_layers) == {"resident"}
    assert plan.config.kv_precision == "bf16" and plan.config.tiles == (1, 1)
    assert plan.num_lanes == 1, "one lane has the lower latency and is as fast"
    assert plan.time.copy_s == plan.time.disk_s == 0
    # Three rings: the last of four steps is folded.
    rings = next(p.num_bytes for p in plan.generate_parts if p.name == "KV rings")
    assert rings / GIB == pytest.approx(3 * 9.668, abs=0.01)


def test_folding_saves_a_ring_and_a_quarter_of_the_work() -> None:
    folded = ask("h100", 64)
    whole = replace(folded, fold_last_step=False)
    plans = make_plan(folded), make_plan(whole)
    assert plans[0].time.compute_s == pytest.approx(0.75 * plans[1].time.compute_s)
    folded_bytes, whole_bytes = (
        total(tuple(p for p in plan.generate_parts if p.name != items.GRAPHS)) for plan in plans
    )
    assert (whole_bytes - folded_bytes) / GIB == pytest.approx(9.668, abs=0.01)


def test_a_loaded_speech_encoder_is_counted_where_it_is() -> None:
    """A later plan that needs its memory cannot have it."""
    free = ask("rtx4090", 64)
    fixed = replace(free, constraints=PlanConstraints(speech_encoder="device"))
    left, kept = make_plan(free), make_plan(fixed)
    assert (left.speech_encoder, kept.speech_encoder) == ("host", "device")
    names = {"speech encoder", "speech features", "speech encoder work"}
    assert names <= {item.name for item in kept.generate_parts}
    assert not names & {item.name for item in (*left.generate_parts, *kept.ram_parts)}
    assert kept.vram_bytes <= fixed.budget.vram_bytes
    assert kept.time.copy_s > left.time.copy_s


def test_little_host_memory_brings_in_the_disk() -> None:
    roomy, tight = make_plan(ask("rtx4060ti", 64)), make_plan(ask("rtx4060ti", 20))
    assert "disk" not in roomy.layers and "disk" in tight.layers
    assert roomy.text_encoder == "host" and tight.text_encoder == "disk"
    assert tight.time.block_s >= roomy.time.block_s


def test_ampere_computes_in_bf16() -> None:
    """No fp8 products there: fp8 weights save memory, and cost dequantising."""
    plan = make_plan(ask("a100-80", 64))
    assert plan.config.precision == "bf16"
    with_fp8 = replace(ask("a100-80", 64), constraints=PlanConstraints(precision="fp8"))
    assert make_plan(with_fp8).time.compute_s > plan.time.compute_s


@given(st.integers(1, 60), st.integers(0, 60))
def test_resident_layers_lie_spread(num_layers: int, resident: int) -> None:
    resident = min(resident, num_layers)
    order = residency_order(num_layers)
    assert sorted(order) == list(range(num_layers))
    assume(0 < resident < num_layers)
    chosen = sorted(order[:resident])
    gaps = [b - a for a, b in zip(chosen, [*chosen[1:], chosen[0] + num_layers], strict=True)]
    assert max(gaps) <= 3 * num_layers / resident + 1


def test_a_plan_is_a_json_document() -> None:
    plan = make_plan(ask("rtx4090", 64))
    document = json.loads(json.dumps(plan_document(plan)))
    parts = document["vram"]["generate"]
    assert sum(parts.values()) == total(plan.generate_parts) <= document["vram"]["peak_bytes"]
    assert sum(document["ram"]["parts"].values()) == plan.ram_bytes
    seconds_ = document["seconds_per_block"]
    streams = [seconds_[name] for name in ("compute", "decode", "copies", "disk", "other GPUs")]
    assert sum(streams) - seconds_["hidden by overlap"] == pytest.approx(
        seconds_["block"], abs=1e-3
    )
    assert len(document["layers"]) == 40


def test_ticks_are_recorded_where_one_gpu_holds_everything() -> None:
    """Their memory is planned, and no plan is slower for it."""
    plan = make_plan(ask("h100", 64))
    assert plan.config.graphs
    without = make_plan(replace(plan.request, constraints=PlanConstraints(graphs=False)))
    assert not without.config.graphs and without.time.block_s >= plan.time.block_s
    extra = total(plan.generate_parts) - total(without.generate_parts)
    (graphs,) = (part for part in plan.generate_parts if part.name == items.GRAPHS)
    activations = next(p for p in plan.generate_parts if p.name == items.ACTIVATIONS)
    assert extra == graphs.num_bytes > activations.num_bytes
    speech = sum(p.num_bytes for p in plan.generate_parts if p.name.startswith("speech"))
    tight = replace(plan.request, budget=Budget(plan.generate_bytes - speech - 1, PLENTY))
    assert not make_plan(tight).config.graphs
    assert not make_plan(ask("rtx4090", 64)).config.graphs, "rings are streamed"
    with_vae_rank = WorkShare(decodes=False)
    assert not make_plan(plan.request, with_vae_rank).config.graphs


def test_too_many_places_in_a_ring_are_not_recorded() -> None:
    request = ask("h100", 64)
    for window, is_recorded in ((12, True), (8, True), (10, True), (11, False), (20, False)):
        geometry = replace(request.geometry, window=window)
        found = make_plan(replace(request, geometry=geometry, budget=Budget(2**40, 2**40)))
        assert found.config.graphs is is_recorded, window
