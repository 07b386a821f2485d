"""Predicted seconds against figures measured on one H100 (see the comments); and cards by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import KVPrecision, Precision
from lipcast.config.units import GIB, format_bytes, parse_bytes
from lipcast.errors import UsageError
from lipcast.planning import costs
from lipcast.planning.costs import HOST_S_PER_LAUNCH, arithmetic_seconds, tick_seconds
from lipcast.planning.hardware import expected_kernels, gpu, gpu_names

H100 = gpu("h100")
FULL = DiTConfig()
NO_AUDIO = DiTConfig(audio_inject_layers=())
"""What the streaming prototype ran: 40 layers without injectors."""
WITHIN = 0.15


def geometry(height: int = 704, width: int = 384, infer_frames: int = 48) -> Geometry:
    return Geometry.of(FULL, VAEConfig(), height=height, width=width, infer_frames=infer_frames)


def bare_ms(config: DiTConfig, at: Geometry, precision: Precision, *, num_lanes: int = 1) -> float:
    return 1e3 * arithmetic_seconds(config, at, H100, precision=precision, num_lanes=num_lanes)


def tick_ms(
    at: Geometry,
    precision: Precision,
    ring: KVPrecision = "bf16",
    *,
    num_lanes: int = 1,
    kernels: KernelName = "triton",
    graphs: bool = False,
) -> float:
    hardware = expected_kernels(H100, kernels)
    seconds = tick_seconds(
        FULL,
        at,
        hardware,
        precision=precision,
        kv_precision=ring,
        num_lanes=num_lanes,
        graphs=graphs,
    )
    return 1e3 * seconds


@pytest.mark.parametrize(
    ("at", "precision", "num_lanes", "measured_ms"),
    [
        (geometry(), "bf16", 1, 191.9),
        (geometry(), "fp8", 1, 141.1),
        (geometry(640), "fp8", 1, 123.7),
        (geometry(infer_frames=24), "fp8", 1, 110.1),
        (geometry(), "bf16", 4, 777.0),
        (geometry(), "fp8", 4, 540.5),
    ],
)
def test_sustained_products_and_attention(
    at: Geometry, precision: Precision, num_lanes: int, measured_ms: float
) -> None:
    predicted = bare_ms(FULL, at, precision, num_lanes=num_lanes)
    assert predicted == pytest.approx(measured_ms, rel=0.04)


WEIGHTS, RING_FP8, RING_BF16 = 11.95e9, 5.19e9, 10.38e9


@pytest.mark.parametrize(
    ("num_lanes", "streamed_bytes", "measured_ms"),
    [
        (1, 0.0, 133.0),
        (1, WEIGHTS, 221.6),
        (1, RING_FP8, 136.0),
        (4, 0.0, 542.7),
        (4, WEIGHTS, 539.3),
        (4, 4 * RING_FP8, 540.8),
        (4, WEIGHTS + 4 * RING_FP8, 616.8),
        (4, 4 * RING_BF16, 770.6),
    ],
)
def test_streaming_prototype(num_lanes: int, streamed_bytes: float, measured_ms: float) -> None:
    """A tick takes the longer of its arithmetic and its copies."""
    copies = 1e3 * costs.copy_seconds(H100, to_gpu_bytes=streamed_bytes)
    predicted = max(bare_ms(NO_AUDIO, geometry(), "fp8", num_lanes=num_lanes), copies)
    assert predicted == pytest.approx(measured_ms, rel=0.04)


def test_both_directions_slow_each_other() -> None:
    """Measured: 37.7 to 45.2 GB/s each way instead of 54.5."""
    both = costs.copy_seconds(H100, to_gpu_bytes=1e9, to_host_bytes=1e9)
    assert 37.7 <= 1 / both <= 45.2


def test_decoding_a_block() -> None:
    """Measured: 27.5 TFLOP and 241.7 ms for 3 latents at 704x384, the public implementation.

    With fused kernels, not measured, the convolutions are assumed at half the rate of matrix products.
    """
    at = geometry()
    flops = costs.decode_flops(VAEConfig(), at.latent_height, at.latent_width, num_latents=3)
    assert flops == pytest.approx(27.5e12, rel=0.01)
    plain, fused = (replace(H100, kernels=kernels) for kernels in ("plain", "triton"))
    assert costs.decode_seconds(VAEConfig(), at, plain) == pytest.approx(0.2417, rel=0.02)
    assert costs.decode_seconds(VAEConfig(), at, fused) == pytest.approx(0.084, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "ring", "num_lanes", "plain_ms", "triton_ms"),
    [
        ("fp8", "bf16", 1, 273, 156),
        ("bf16", "bf16", 1, 282, 209),
        ("fp8", "fp8", 1, 289, 161),
        ("fp8", "int4", 1, 303, 160),
        ("fp8", "fp8", 3, 876, 491),
    ],
)
def test_a_real_tick(
    precision: Precision, ring: KVPrecision, num_lanes: int, plain_ms: float, triton_ms: float
) -> None:
    """Predicted from the engine's counted traffic. The public implementation's kernels, compiled, sum to
    238.5 ms in fp8 and 276.5 in bf16; products and attention alone to 141 and 192."""
    expected: dict[KernelName, float] = {"plain": plain_ms, "triton": triton_ms}
    for kernels, expected_ms in expected.items():
        tick = tick_ms(geometry(), precision, ring, num_lanes=num_lanes, kernels=kernels)
        assert tick == pytest.approx(expected_ms, rel=0.01)


@pytest.mark.parametrize(
    ("kernels", "precision", "num_launches"),
    [
        ("plain", "fp8", 5688),
        ("plain", "bf16", 3576),
        ("triton", "fp8", 964),
        ("triton", "bf16", 872),
    ],
)
def test_small_pictures_wait_for_the_host(
    kernels: KernelName, precision: Precision, num_launches: int
) -> None:
    tick = tick_ms(geometry(64, 64, 12), precision, kernels=kernels)
    assert tick == pytest.approx(1e3 * HOST_S_PER_LAUNCH[kernels] * num_launches)


def test_weights_are_dequantised_once_a_tick() -> None:
    """With plain kernels, on cards that do not multiply 8-bit floats."""
    ampere = replace(gpu("rtx3090"), kernels="plain")
    assert costs.needs_dequantising(ampere, "fp8") and not costs.needs_dequantising(H100, "fp8")

    def tick(precision: Precision, num_lanes: int) -> float:
        return tick_seconds(
            FULL, geometry(), ampere,
            precision=precision, kv_precision="bf16", num_lanes=num_lanes,
        )  # fmt: skip

    extra = [tick("fp8", lanes) - tick("bf16", lanes) for lanes in (1, 3)]
    assert extra[0] == pytest.approx(extra[1])
    # A byte is read, two are written, read and scaled in place: 7 bytes of each of 14.4e9 weights.
    weights = costs.lane_gemm_flops(FULL, geometry()) / costs.lane_tokens(geometry()) / 2
    assert extra[0] == pytest.approx(7 * weights / ampere.memory_bytes_per_s, rel=0.01)


@pytest.mark.parametrize(
    ("card", "efficiency"), [("rtx3090", 0.95), ("rtx5090", 0.95), ("h100", 0.8)]
)
def test_fused_kernels_restore_weights_in_registers(card: str, efficiency: float) -> None:
    """No pass over the weights, and a product that is slower; who multiplies fp8 as it is goes on so."""
    hardware, at = gpu(card), geometry()
    for precision in ("int4", "int8", "fp8"):
        is_native = precision == "fp8" and hardware.has_fp8
        reading = costs.weight_reading(hardware, precision)
        assert reading == ("as stored" if is_native else "in registers")
        assert not costs.needs_dequantising(hardware, precision)
        rate = costs.gemm_flops_per_s(hardware, precision)
        slower = efficiency * hardware.bf16_flops
        assert rate == (hardware.fp8_flops if is_native else slower)
        if not is_native:
            products = costs.lane_gemm_flops(FULL, at)
            both = [
                tick_seconds(
                    FULL, at, hardware, precision=p, kv_precision="bf16", num_lanes=1
                )
                for p in (precision, "bf16")
            ]  # fmt: skip
            extra = products / slower - products / hardware.bf16_flops
            assert both[0] - both[1] == pytest.approx(extra)


@pytest.mark.parametrize("card", ["h100", "rtx5090", "b200"])
def test_nvfp4_is_fast_where_matrix_units_have_it(card: str) -> None:
    hardware, is_native = gpu(card), card != "h100"
    reading = costs.weight_reading(hardware, "nvfp4")
    assert reading == ("as stored" if is_native else "dequantised")
    assert costs.needs_dequantising(hardware, "nvfp4") is not is_native
    nvfp4_s, bf16_s = (
        tick_seconds(FULL, geometry(), hardware, precision=p, kv_precision="bf16", num_lanes=1)
        for p in ("nvfp4", "bf16")
    )
    assert (nvfp4_s < bf16_s) is is_native


# Cards and sizes


def test_every_card_has_plausible_rates() -> None:
    for name in gpu_names():
        card = gpu(name)
        assert 7 * GIB < card.memory_bytes < 200 * GIB
        assert 10e12 < card.bf16_flops < 3e15
        assert card.fp8_flops == 0 or 1.5 < card.fp8_flops / card.bf16_flops < 2.1
        assert 5e9 < card.link_bytes_per_s < card.memory_bytes_per_s
    assert [gpu(name).name for name in gpu_names() if gpu(name).source == "measured"] == ["h100"]


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "4090"])
def test_cards_are_found_by_their_usual_names(name: str) -> None:
    assert gpu(name) == replace(gpu("rtx4090"))


def test_unknown_card_is_refused_with_near_names() -> None:
    with pytest.raises(UsageError, match="rtx4090"):
        gpu("rtx4091")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("12GB", 12 * 10**9),
        ("12gib", 12 * 2**30),
        ("11.5 GiB", 23 * 2**29),
        ("900M", 900 * 10**6),
        ("2097152", 2097152),
        ("64B", 64),
    ],
)
def test_sizes_are_parsed(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "12 XB", "-3GB", "1e9", "12GBs"])
def test_nonsense_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match='expected a size such as "12GB"'):
        parse_bytes(text)


@given(st.integers(10**6, 2**50))
def test_a_plain_number_is_bytes(num_bytes: int) -> None:
    assert parse_bytes(str(num_bytes)) == num_bytes


def test_bytes_are_written_with_their_unit() -> None:
    assert format_bytes(9.668 * GIB) == "9.67 GiB"
    assert format_bytes(750 * 2**20) == "750 MiB"


def test_recorded_ticks_do_not_wait_for_the_host() -> None:
    """One launch a tick; what the GPU takes stays."""
    small = geometry(64, 64, 12)
    assert 0 < tick_ms(small, "fp8", graphs=True) < tick_ms(small, "fp8") / 4
    assert tick_ms(geometry(), "fp8", graphs=True) == tick_ms(geometry(), "fp8")
