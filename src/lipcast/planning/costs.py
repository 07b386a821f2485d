"""Seconds of the parts of a block on given hardware: arithmetic, memory traffic, host time, copies.

Inputs: configs, geometry, `Hardware`, precision. Outputs: FLOPs and seconds.
A tick is the sum of its lanes' matrix products, attention and elementwise traffic, or the host's
launch time where that is longer. Copies overlap with all of it: a tick with streaming takes the
longer of the two. Calibrated on one H100; `BARE` is the matrix products and attention alone,
`ENGINE` all of a real tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from lipcast.config.geometry import Geometry
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.planning.hardware import Hardware
from lipcast.planning.sizes import Precision, attention_workspace_bytes, plain_bytes
from lipcast.planning.tensors import decoder_stages


@dataclass(frozen=True, slots=True)
class KernelCosts:
    """What a tick costs beside matrix products and attention.

    Passes are reads or writes of one activation [tokens, D] in bf16, per layer.
    """

    elementwise_passes: float
    quantise_passes: float
    joins_kv: bool
    """Ring and sink are copied side by side for every lane and layer."""
    host_s_per_layer: float
    host_s_per_lane_layer: float


BARE = KernelCosts(0.0, 0.0, joins_kv=False, host_s_per_layer=0.0, host_s_per_lane_layer=0.0)
# Passes: the measured 48 ms of norms, modulation, residuals and rotation, and 16 ms of
# quantisation, of the public implementation under torch.compile (3168 tokens, 40 layers), less what
# this engine does once per block. Host: 75 + 15 launches of 10 µs, an assumption.
ENGINE = KernelCosts(
    111.0, 37.0, joins_kv=True, host_s_per_layer=7.5e-4, host_s_per_lane_layer=1.5e-4
)

WRITE_BACK_COST = 0.3
"""A byte to the host slows the copies towards the GPU by this part of a byte (both directions at
once, measured)."""

_DECODE_TRAFFIC_BYTES = 610e9 / (704 * 384 * 12 * 96)
"""Memory traffic of decoding per pixel, frame and channel of the widest picture: 242 ms measured
for 12 frames of 704x384 at 96 channels, less the arithmetic at the rate of matrix products."""


def lane_gemm_flops(config: DiTConfig, geometry: Geometry) -> float:
    """Matrix products of one lane: a multiplication and an addition per weight and token."""
    dim = config.dim
    per_layer = 6 * dim * dim + 2 * dim * config.ffn_dim  # q k v o, text q and o, feed-forward
    injectors = 2 * dim * dim * len(config.audio_inject_layers)  # q and o
    weights = config.num_layers * per_layer + injectors
    return 2.0 * lane_tokens(geometry) * weights


def lane_attention_flops(config: DiTConfig, geometry: Geometry) -> float:
    """Self-attention over ring and sink, and attention to the text, of one lane."""
    keys = geometry.window * geometry.tokens_per_frame + geometry.sink_tokens + config.text_len
    return 4.0 * lane_tokens(geometry) * keys * config.dim * config.num_layers


def lane_tokens(geometry: Geometry) -> int:
    """Noisy tokens of one lane."""
    return geometry.latents_per_block * geometry.tokens_per_frame


def gemm_flops_per_s(hardware: Hardware, precision: Precision) -> float:
    """The rate of matrix products with weights stored so; weight-only formats compute in bf16."""
    if precision == "fp8" and hardware.has_fp8:
        return hardware.fp8_flops
    return hardware.bf16_flops / (2 if precision == "fp32" else 1)


def needs_dequantising(hardware: Hardware, precision: Precision) -> bool:
    """Whether a layer's weights are expanded to bf16 before use."""
    return precision in {"int8", "int4"} or (precision == "fp8" and not hardware.has_fp8)


def tick_seconds(
    config: DiTConfig,
    geometry: Geometry,
    hardware: Hardware,
    *,
    precision: Precision,
    num_lanes: int,
    stored_layer_bytes: int = 0,
    split: int = 1,
    costs: KernelCosts = ENGINE,
) -> float:
    """Seconds of one tick with everything at hand.

    `stored_layer_bytes` counts where weights are dequantised; `split` GPUs share tokens and heads.
    """
    products = lane_gemm_flops(config, geometry) / gemm_flops_per_s(hardware, precision)
    attention = lane_attention_flops(config, geometry) / hardware.attention_flops
    lane_s = (
        products
        + attention
        + _lane_traffic_s(config, geometry, hardware, precision=precision, costs=costs)
    )
    gpu_s = num_lanes * lane_s / split
    if needs_dequantising(hardware, precision):
        expanded = lane_gemm_flops(config, geometry) / lane_tokens(geometry)  # 2 bytes a weight
        gpu_s += (stored_layer_bytes + expanded) / hardware.memory_bytes_per_s
    host_s = costs.host_s_per_layer + num_lanes * costs.host_s_per_lane_layer
    return max(gpu_s, config.num_layers * host_s)


def _lane_traffic_s(
    config: DiTConfig,
    geometry: Geometry,
    hardware: Hardware,
    *,
    precision: Precision,
    costs: KernelCosts,
) -> float:
    passes = costs.elementwise_passes
    if precision == "fp8" and hardware.has_fp8:
        passes += costs.quantise_passes
    per_layer = passes * lane_tokens(geometry) * config.dim * plain_bytes(precision)
    if costs.joins_kv:
        per_layer += 2 * attention_workspace_bytes(config, geometry, precision)
    return config.num_layers * per_layer / hardware.memory_bytes_per_s


def copy_seconds(hardware: Hardware, *, to_gpu_bytes: float, to_host_bytes: float = 0.0) -> float:
    """Seconds the link needs for both directions at once."""
    return (to_gpu_bytes + WRITE_BACK_COST * to_host_bytes) / hardware.link_bytes_per_s


def exchange_seconds(
    config: DiTConfig, geometry: Geometry, hardware: Hardware, *, num_lanes: int, split: int
) -> float:
    """Ulysses: q, k, v and the result of every layer cross between `split` GPUs once per tick."""
    own = 4 * num_lanes * lane_tokens(geometry) * config.dim * 2 / split
    return config.num_layers * own * (split - 1) / split / hardware.peer_bytes_per_s


@cache
def decode_flops(
    config: VAEConfig, latent_height: int, latent_width: int, *, num_latents: int
) -> float:
    """Convolutions of the streaming decoder for `num_latents` latent frames, the video already
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
    """Weights of the residual blocks of one resolution."""
    shortcut = in_dim * out_dim if in_dim != out_dim else 0
    return 27 * out_dim * (in_dim + (2 * num_res_blocks + 1) * out_dim) + shortcut


def decode_seconds(
    config: VAEConfig, geometry: Geometry, hardware: Hardware, *, area_factor: float = 1.0
) -> float:
    """Seconds to decode one block; `area_factor` is what overlapping tiles compute twice."""
    flops = decode_flops(
        config,
        geometry.latent_height,
        geometry.latent_width,
        num_latents=geometry.latents_per_block,
    )
    frames = geometry.latents_per_block * config.temporal_factor
    traffic = _DECODE_TRAFFIC_BYTES * geometry.height * geometry.width * frames * config.dim
    seconds = flops / hardware.bf16_flops + traffic / hardware.memory_bytes_per_s
    return area_factor * seconds
