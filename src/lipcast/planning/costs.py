"""Seconds of the parts of a block on given hardware: arithmetic, memory traffic, host time, copies.

Inputs: configs, geometry, `Hardware`, precision. Outputs: FLOPs and seconds.
A tick is the sum of its lanes' matrix products, attention and elementwise traffic, or the host's
launch time where that is longer. Copies overlap with all of it: a tick with streaming takes the
longer of the two. Rates are an H100's, measured; launches and traffic are counted
(`lipcast.planning.kernel_counts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import KVPrecision, Precision
from lipcast.planning.hardware import Hardware
from lipcast.planning.kernel_counts import KernelCounts, KeyReading, WeightReading, kernel_counts
from lipcast.planning.tensors import decoder_stages

HOST_S_PER_LAUNCH: Mapping[KernelName, float] = MappingProxyType({"plain": 1e-5, "triton": 2.5e-5})
"""What the host needs to launch a kernel; assumed. Half of the launches are Triton's where it is used,
which go through Python."""
STORED_PRODUCT_EFFICIENCY, DATA_CENTRE_EFFICIENCY = 0.95, 0.8
"""Rate of products that restore int4, int8 or fp8 weights in registers, over that of products of bf16; on
Hopper and data-centre Blackwell, whose tensor cores are harder to feed. Assumed, not measured:
`benchmarks/gpu_check.py fast` measures it."""
WRITE_BACK_COST = 0.3
"""A byte to the host slows the copies towards the GPU by this part of a byte (both directions at
once, measured)."""

_DECODED_VALUES = 704 * 384 * 12 * 96
DECODE_TRAFFIC_BYTES: Mapping[KernelName, float] = MappingProxyType(
    {"plain": 88.7e9 / _DECODED_VALUES, "triton": 17.3e9 / _DECODED_VALUES}
)
"""Elementwise traffic of decoding per pixel, frame and channel of the widest picture; counted."""
_CONVOLUTION_EFFICIENCY: Mapping[KernelName, float] = MappingProxyType(
    {"plain": 129 / 700, "triton": 0.5}
)
"""Rate of the decoder's convolutions over that of matrix products. Plain: of the measured 242 ms for 12
frames of 704x384 on an H100, what the counted traffic leaves for 27.5 TFLOP. Triton: assumed, not measured;
`benchmarks/gpu_check.py fast` measures it."""


def lane_gemm_flops(config: DiTConfig, geometry: Geometry) -> float:
    """Return the operations of one lane's matrix products: two per weight and token."""
    return 2.0 * lane_tokens(geometry) * _num_weights(config)


def _num_weights(config: DiTConfig) -> int:
    """Return the number of weights that a tick multiplies."""
    dim = config.dim
    per_layer = 6 * dim * dim + 2 * dim * config.ffn_dim  # q k v o, text q and o, feed-forward
    injectors = 2 * dim * dim * len(config.audio_inject_layers)  # q and o
    return config.num_layers * per_layer + injectors


def lane_attention_flops(config: DiTConfig, geometry: Geometry) -> float:
    """Return the operations of one lane's attention: to ring and sink, and to the text."""
    keys = _lane_keys(geometry) + config.text_len
    return 4.0 * lane_tokens(geometry) * keys * config.dim * config.num_layers


def _lane_keys(geometry: Geometry) -> int:
    """Return the number of keys in ring and sink."""
    return geometry.window * geometry.tokens_per_frame + geometry.sink_tokens


def lane_tokens(geometry: Geometry) -> int:
    """Return the number of noisy tokens of one lane."""
    return geometry.latents_per_block * geometry.tokens_per_frame


def gemm_flops_per_s(hardware: Hardware, precision: Precision) -> float:
    """Return the rate of matrix products with weights stored so; weight-only formats compute in bf16."""
    if precision == "fp8" and hardware.has_fp8:
        return hardware.fp8_flops
    if precision == "nvfp4" and hardware.has_fp4:
        return hardware.fp4_flops
    if weight_reading(hardware, precision) == "in registers":
        is_data_centre = hardware.prefers_cudnn
        efficiency = DATA_CENTRE_EFFICIENCY if is_data_centre else STORED_PRODUCT_EFFICIENCY
        return efficiency * hardware.bf16_flops
    return hardware.bf16_flops / (2 if precision == "fp32" else 1)


def weight_reading(hardware: Hardware, precision: Precision) -> WeightReading:
    """Return how weights stored so are multiplied."""
    direct = {"fp32": True, "bf16": True, "fp8": hardware.has_fp8, "nvfp4": hardware.has_fp4}
    if direct.get(precision):
        return "as stored"
    if precision == "nvfp4":  # no kernel restores it tile by tile
        return "dequantised"
    return "in registers" if hardware.kernels == "triton" else "dequantised"


def key_reading(hardware: Hardware) -> KeyReading:
    """Return how attention finds the keys of ring and sink."""
    asked = hardware.attention
    if hardware.kernels != "triton":
        return "joined"
    if asked == "triton" or (asked == "auto" and not hardware.prefers_cudnn):
        return "in place"
    # PyTorch's own gives the log-sum-exp that parts are merged by where it is cuDNN's; all others do.
    is_torch = asked in {"auto", "sdpa"}
    return "joined" if is_torch and not hardware.prefers_cudnn else "by parts"


def ring_reading(hardware: Hardware, precision: Precision, kv_precision: KVPrecision) -> KeyReading:
    """Return the same for a ring stored so: by parts only where its numbers need no decoding."""
    reading = key_reading(hardware)
    is_half = kv_precision == "bf16" and precision != "fp32"
    return "joined" if reading == "by parts" and not is_half else reading


def needs_dequantising(hardware: Hardware, precision: Precision) -> bool:
    """Return whether a layer's weights are expanded to bf16 before use."""
    return weight_reading(hardware, precision) == "dequantised"


def tick_seconds(
    config: DiTConfig,
    geometry: Geometry,
    hardware: Hardware,
    *,
    precision: Precision,
    kv_precision: KVPrecision,
    num_lanes: int,
    split: float = 1,
    graphs: bool = False,
) -> float:
    """Return the seconds of one tick with everything at hand; `split` GPUs share tokens and heads.

    With `graphs` the host launches a tick at once.
    """
    counts = tick_counts(hardware, precision, kv_precision, num_lanes=num_lanes)
    arithmetic = arithmetic_seconds(
        config, geometry, hardware, precision=precision, num_lanes=num_lanes
    )
    lane_bytes = lane_traffic_bytes(counts, config, geometry)
    traffic = num_lanes * lane_bytes / hardware.memory_bytes_per_s
    weights = counts.bytes_per_weight * _num_weights(config) / hardware.memory_bytes_per_s
    gpu_s = (arithmetic + traffic) / split + weights
    launched = 1 if graphs else launches(counts, config, num_lanes=num_lanes)
    return max(gpu_s, HOST_S_PER_LAUNCH[hardware.kernels] * launched)


def tick_counts(
    hardware: Hardware, precision: Precision, kv_precision: KVPrecision, *, num_lanes: int
) -> KernelCounts:
    """Return what a tick asks of this GPU."""
    return kernel_counts(
        precision,
        kv_precision,
        num_lanes=num_lanes,
        kernels=hardware.kernels,
        attends=ring_reading(hardware, precision, kv_precision),
        reading=weight_reading(hardware, precision),
    )


def arithmetic_seconds(
    config: DiTConfig,
    geometry: Geometry,
    hardware: Hardware,
    *,
    precision: Precision,
    num_lanes: int,
) -> float:
    """Return the seconds of the matrix products and the attention of one tick, and of nothing else."""
    products = lane_gemm_flops(config, geometry) / gemm_flops_per_s(hardware, precision)
    attention = lane_attention_flops(config, geometry) / hardware.attention_flops
    return num_lanes * (products + attention)


def lane_traffic_bytes(counts: KernelCounts, config: DiTConfig, geometry: Geometry) -> float:
    """Return the elementwise traffic of one lane: whatever grows with its tokens and keys."""
    tokens, keys = lane_tokens(geometry), _lane_keys(geometry)
    per_layer = (
        counts.bytes_per_value * tokens * config.dim
        + counts.bytes_per_hidden * tokens * config.ffn_dim
        + counts.bytes_per_key * keys * config.dim
    )
    injected = counts.bytes_per_injected_value * tokens * config.dim
    return config.num_layers * per_layer + len(config.audio_inject_layers) * injected


def launches(counts: KernelCounts, config: DiTConfig, *, num_lanes: int) -> float:
    """Return the number of kernels of one tick."""
    per_layer = counts.launches_per_layer + num_lanes * counts.launches_per_lane_layer
    injectors = len(config.audio_inject_layers)
    return config.num_layers * per_layer + injectors * counts.launches_per_injector


def copy_seconds(hardware: Hardware, *, to_gpu_bytes: float, to_host_bytes: float = 0.0) -> float:
    """Return the seconds that the link needs for both directions at once."""
    return (to_gpu_bytes + WRITE_BACK_COST * to_host_bytes) / hardware.link_bytes_per_s


def exchange_seconds(
    config: DiTConfig, geometry: Geometry, hardware: Hardware, *, num_lanes: int, split: float
) -> float:
    """Return the seconds of Ulysses: q, k, v and every layer's result cross between `split` GPUs per tick."""
    own = 4 * num_lanes * lane_tokens(geometry) * config.dim * 2 / split
    return config.num_layers * own * (split - 1) / split / hardware.peer_bytes_per_s


@cache
def decode_flops(
    config: VAEConfig, latent_height: int, latent_width: int, *, num_latents: int
) -> float:
    """Return the operations of the streaming decoder for `num_latents` latent frames, the video already
    running."""
    first = config.dim * config.dim_mult[-1]
    positions = float(num_latents * latent_height * latent_width)
    weights = positions * (27 * first * config.z_dim + 4 * 27 * first * first + 4 * first * first)
    last = first
    for stage in decoder_stages(config):
        weights += positions * _stage_weights(stage.in_dim, stage.out_dim, config.num_res_blocks)
        last = stage.out_dim
        if stage.doubles_frames:
            weights += positions * 3 * 2 * last * last
            positions *= 2
        if stage.upsamples:
            positions *= 4
            weights += positions * 9 * last * (last // 2)
    return 2.0 * (weights + positions * 27 * last * 3)


def _stage_weights(in_dim: int, out_dim: int, num_res_blocks: int) -> float:
    """Return the number of weights of the residual blocks of one resolution."""
    shortcut = in_dim * out_dim if in_dim != out_dim else 0
    return 27 * out_dim * (in_dim + (2 * num_res_blocks + 1) * out_dim) + shortcut


def decode_seconds(
    config: VAEConfig, geometry: Geometry, hardware: Hardware, *, area_factor: float = 1.0
) -> float:
    """Return the seconds to decode one block; `area_factor` is what overlapping tiles compute twice."""
    flops = decode_flops(
        config,
        geometry.latent_height,
        geometry.latent_width,
        num_latents=geometry.latents_per_block,
    )
    frames = geometry.latents_per_block * config.temporal_factor
    bytes_per_value = DECODE_TRAFFIC_BYTES[hardware.kernels]
    traffic = bytes_per_value * geometry.height * geometry.width * frames * config.dim
    rate = _CONVOLUTION_EFFICIENCY[hardware.kernels] * hardware.bf16_flops
    seconds = flops / rate + traffic / hardware.memory_bytes_per_s
    return area_factor * seconds
