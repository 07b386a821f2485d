"""What a step and a block ask of a GPU, held by budgets that may only fall.

Counted by the real engine on fake CUDA tensors of the true model's shapes (704x384, 48 frames of window,
steady state). After an improvement, lower the budget to the new count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.lab.counting import Work
from lipcast.lab.gpu_work import (
    StepCase,
    count_block_start,
    count_step,
    count_tick,
    count_vae,
    default_spec,
)
from lipcast.planning import costs
from lipcast.planning.kernel_counts import KeyReading, WeightReading, kernel_counts

FULL = DiTConfig()
BUDGETS = {
    StepCase("fp8"): (984, 53.9e9),
    StepCase("bf16"): (892, 53.3e9),
    StepCase("fp8", merges=False): (904, 73.8e9),
    StepCase("fp8", "fp8"): (904, 67.5e9),
    StepCase("fp8", "int4"): (904, 64.5e9),
    StepCase("fp8", in_place=True): (864, 48.7e9),
    StepCase("int4"): (892, 53.3e9),
    StepCase("int8"): (892, 53.3e9),
    StepCase("fp8", direct=False): (892, 53.3e9),
    StepCase("nvfp4"): (3324, 81.1e9),
    StepCase("nvfp4", direct=False): (6476, 239.7e9),
    StepCase("int4", "int4", in_place=True): (772, 48.6e9),
    StepCase("fp8", "fp8", num_lanes=3): (1770, 229.2e9),
    StepCase("fp8", kernels="plain"): (5708, 406.6e9),
    StepCase("bf16", kernels="plain"): (3596, 271.9e9),
    StepCase("fp8", "fp8", kernels="plain"): (6588, 462.9e9),
    StepCase("bf16", "int4", kernels="plain"): (5196, 359.7e9),
    StepCase("int8", kernels="plain"): (4284, 360.0e9),
    StepCase("int4", kernels="plain"): (5660, 461.5e9),
    StepCase("fp8", "fp8", num_lanes=3, kernels="plain"): (11054, 1415.6e9),
}
"""Launches and bytes of elementwise traffic of one tick."""
QUICK = {StepCase("fp8"), StepCase("int4")}
BLOCK_START = 508, 13.0e9
VAE_BUDGETS = {
    "triton": {
        "decode_block": (187, 17.3e9),
        "prime": (694, 29.8e9),
        "encode_still": (80, 9.7e9),
    },
    "plain": {
        "decode_block": (926, 88.7e9),
        "prime": (1943, 128.9e9),
        "encode_still": (266, 65.7e9),
    },
}


def assert_within(work: Work, launches: int, num_bytes: float) -> None:
    assert 0 < work.launches <= launches
    assert 0 < work.elementwise_bytes <= num_bytes


def quick_or_slow(cases):
    """Cases of a test; those that take long are slow."""
    return [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in cases]


KEY_READINGS: dict[tuple[bool | None, bool], KeyReading] = {
    (None, True): "by parts",
    (None, False): "joined",
    (True, True): "in place",
}
"""How a case attends, by `in_place` and `merges`."""


def reading_of(case: StepCase) -> WeightReading:
    """How a case multiplies its weights."""
    if case.precision == "bf16" or (case.precision in {"fp8", "nvfp4"} and case.direct):
        return "as stored"
    if case.precision == "nvfp4":
        return "dequantised"
    return "in registers" if case.kernels == "triton" else "dequantised"


@cache
def counted(case: StepCase) -> Work:
    """One tick of the true model."""
    return count_step(FULL, case).total(FULL)


def key_reading_of(case: StepCase) -> KeyReading:
    """By parts only where the ring's numbers need no decoding."""
    reading = KEY_READINGS[case.in_place, case.merges]
    is_half = case.kv_precision in {None, "bf16"} and case.precision != "fp32"
    return "joined" if reading == "by parts" and not is_half else reading


@pytest.mark.parametrize("case", quick_or_slow(BUDGETS), ids=str)
def test_a_step_stays_within_its_budget(case: StepCase) -> None:
    total = counted(case)
    assert_within(total, *BUDGETS[case])
    geometry = default_spec(FULL).geometry
    products = case.num_lanes * costs.lane_gemm_flops(FULL, geometry)
    attention = case.num_lanes * costs.lane_attention_flops(FULL, geometry)
    assert total.gemm_flop == pytest.approx(products, rel=0.005)
    assert total.attention_flop == pytest.approx(attention, rel=0.005)


@pytest.mark.parametrize("case", quick_or_slow(BUDGETS), ids=str)
def test_the_planner_knows_what_a_step_asks_for(case: StepCase) -> None:
    """Its table of counts is that of the engine. After a change of kernels: `gpu_check.py count --table`."""
    total, geometry = counted(case), default_spec(FULL).geometry
    counts = kernel_counts(
        case.precision,
        case.kv_precision or "bf16",
        num_lanes=case.num_lanes,
        kernels=case.kernels,
        reading=reading_of(case),
        attends=key_reading_of(case),
    )
    weights = costs.lane_gemm_flops(FULL, geometry) / costs.lane_tokens(geometry) / 2
    traffic = case.num_lanes * costs.lane_traffic_bytes(counts, FULL, geometry)
    planned_bytes = traffic + counts.bytes_per_weight * weights
    assert planned_bytes == pytest.approx(total.elementwise_bytes, rel=0.02)
    planned = costs.launches(counts, FULL, num_lanes=case.num_lanes)
    assert planned == pytest.approx(total.launches, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("case", [StepCase("fp8"), StepCase("bf16", "fp8", 3)], ids=str)
def test_all_layers_are_alike(case: StepCase) -> None:
    """The extension from two layers is the count of every layer."""
    some = replace(FULL, num_layers=7, audio_inject_layers=(0, 2, 5))
    counted = count_tick(some, default_spec(some), case).total()
    assert count_step(some, case).total(some) == counted


@pytest.mark.slow
def test_every_layer_of_the_true_model() -> None:
    counted = count_tick(FULL, default_spec(FULL), StepCase("fp8")).total()
    assert count_step(FULL, StepCase("fp8")).total(FULL) == counted


@pytest.mark.slow
def test_the_start_of_a_block_stays_within_its_budget() -> None:
    work = count_block_start(FULL, default_spec(FULL), StepCase("fp8")).total()
    assert_within(work, *BLOCK_START)


@pytest.mark.parametrize("kernels", ["triton", pytest.param("plain", marks=pytest.mark.slow)])
def test_the_autoencoder_stays_within_its_budget(kernels: KernelName) -> None:
    counts = count_vae(
        VAEConfig(), default_spec(FULL), still_frames=FULL.motion_frames, kernels=kernels
    )
    assert counts.keys() == VAE_BUDGETS[kernels].keys()
    for name, work in counts.items():
        assert_within(work, *VAE_BUDGETS[kernels][name])
    geometry = default_spec(FULL).geometry
    flop = costs.decode_flops(
        VAEConfig(), geometry.latent_height, geometry.latent_width, num_latents=3
    )
    decoded = counts["decode_block"]
    assert decoded.convolution_flop + decoded.gemm_flop == pytest.approx(flop, rel=0.01)
    pixels = 12 * geometry.height * geometry.width * VAEConfig().dim
    planned_bytes = costs.DECODE_TRAFFIC_BYTES[kernels] * pixels
    assert planned_bytes == pytest.approx(decoded.elementwise_bytes, rel=0.01)
