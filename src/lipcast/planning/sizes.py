"""Bytes of everything that generation keeps or needs, from configs and geometry alone.

Inputs: the configs, a Geometry, precisions. Outputs: bytes as whole numbers, by part.
Weights: linear layers inside the transformer's layers are quantised, everything outside them stays
in bf16. Ring, sink and text keys: exact. Working memory of a tick and of the autoencoder: multiples
of one activation, counted on the modules themselves (see the constants); cuDNN's workspace is an
allowance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from types import MappingProxyType

from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, SpeechShape, TextConfig, VAEConfig
from lipcast.config.precision import KVPrecision, Precision, plain_precision
from lipcast.planning.kernel_counts import KeyReading
from lipcast.planning.tensors import (
    WEIGHT_USES,
    Shape,
    Tensors,
    WeightUse,
    decoder_stages,
    dit_layer_tensors,
    dit_root_tensors,
    dit_used_tensors,
    num_parameters,
    num_speech_parameters,
    text_tensors,
    vae_tensors,
)

PACK_ALIGN = 256
"""Every tensor of a packed layer begins at a multiple of this many bytes."""
_BF16, _FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a linear weight [out, in] is stored: its numbers, and what is needed to read them."""

    bits: int
    side_bytes: tuple[int, ...] = ()
    """Bytes per group of each side tensor: the scale, and for 4 bits the minimum."""
    group: int = 0
    """Numbers of a row that share a scale; 0: the whole row."""
    tensor_bytes: tuple[int, ...] = ()
    """Bytes of side tensors that all rows share; only then a short row takes no smaller group."""

    def fits(self, num_in: int) -> bool:
        """Return whether rows of this length can be stored so; else the weight is not quantised."""
        return self.bits >= 8 or num_in % (self.group if self.tensor_bytes else 2) == 0

    def part_bytes(self, shape: Shape) -> tuple[int, ...]:
        """Return the bytes of the numbers and of each side tensor."""
        rows, columns = shape
        # A short row takes the largest power of two that divides it.
        group = min(self.group, columns & -columns) if self.group else columns
        groups = rows * (columns // group)
        return (
            prod(shape) * self.bits // 8,
            *(groups * side for side in self.side_bytes),
            *self.tensor_bytes,
        )


WEIGHT_FORMATS: Mapping[Precision, WeightFormat] = MappingProxyType(
    {
        "fp32": WeightFormat(32),
        "bf16": WeightFormat(16),
        "fp8": WeightFormat(8, side_bytes=(4,)),
        "int8": WeightFormat(8, side_bytes=(4,)),
        "int4": WeightFormat(4, side_bytes=(2, 2), group=64),
        "nvfp4": WeightFormat(4, side_bytes=(1,), group=16, tensor_bytes=(4,)),
    }
)


def plain_bytes(precision: Precision) -> int:
    """Return the bytes of a number that is not quantised: biases, norms, all that is outside the layers."""
    return _FP32 if precision == "fp32" else _BF16


def is_quantised(name: str, shape: Shape, precision: Precision) -> bool:
    """Return whether a tensor of a layer is quantised with it: matrices of linear layers are."""
    is_matrix = len(shape) == 2 and name.endswith(".weight")
    return is_matrix and WEIGHT_FORMATS[precision].fits(shape[1])


@cache
def linear_sizes(config: DiTConfig) -> frozenset[tuple[int, int]]:
    """Return (inputs, outputs) of the linear layers that a quantised transformer has."""
    layers = (dit_layer_tensors(config, layer) for layer in range(config.num_layers))
    found = (item for layer in layers for item in layer.items())
    return frozenset(
        (shape[1], shape[0]) for name, shape in found if is_quantised(name, shape, "fp8")
    )


def packed_bytes(tensors: Tensors, precision: Precision) -> int:
    """Return the bytes of a contiguous buffer of these tensors: numbers and scales, each aligned."""
    total = 0
    for name, shape in tensors.items():
        if is_quantised(name, shape, precision):
            total += sum(map(_aligned, WEIGHT_FORMATS[precision].part_bytes(shape)))
        else:
            total += _aligned(prod(shape) * plain_bytes(precision))
    return total


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // PACK_ALIGN) * PACK_ALIGN


@cache
def layer_bytes(config: DiTConfig, precision: Precision, use: WeightUse) -> tuple[int, ...]:
    """Return the packed buffer of every layer for one use; layers with an audio injector are bigger."""
    sizes: dict[bool, int] = {}
    for layer in range(config.num_layers):
        injects = layer in config.audio_inject_layers
        if injects not in sizes:
            sizes[injects] = packed_bytes(dit_used_tensors(config, layer, use), precision)
    return tuple(sizes[i in config.audio_inject_layers] for i in range(config.num_layers))


@cache
def root_bytes(config: DiTConfig, precision: Precision) -> int:
    """Return the bytes of the transformer outside its layers, packed; never quantised."""
    return packed_bytes(dit_root_tensors(config), plain_precision(precision))


def dit_bytes(config: DiTConfig, precision: Precision) -> int:
    """Return the bytes of the whole transformer."""
    layers = (sum(layer_bytes(config, precision, use)) for use in WEIGHT_USES)
    return sum(layers) + root_bytes(config, precision)


def widest_linear_bytes(config: DiTConfig, precision: Precision) -> int:
    """Return the bytes of the largest linear weight of a layer, once it is dequantised."""
    widest = max(config.ffn_dim, 2 * config.dim) * config.dim
    return widest * plain_bytes(precision)


# Keys and values


def kv_bytes_per_token(config: DiTConfig, precision: KVPrecision) -> int:
    """Return the bytes of the keys and values of one token in one layer."""
    head = config.head_dim
    per_head = {
        "fp32": 4 * head,
        "bf16": 2 * head,
        "fp8": head + 4,  # one fp32 scale per token and head
        "int4": head // 2 + 4 * -(-head // 64),  # bf16 scale and minimum per 64 numbers
    }[precision]
    return 2 * config.num_heads * per_head


def ring_layer_bytes(config: DiTConfig, geometry: Geometry, precision: KVPrecision) -> int:
    """Return the bytes of one layer of the KV ring of one denoising step."""
    tokens = geometry.window * geometry.tokens_per_frame
    return tokens * kv_bytes_per_token(config, precision)


def sink_layer_bytes(config: DiTConfig, geometry: Geometry, precision: KVPrecision) -> int:
    """Return the bytes of one layer of the sink: keys of reference and motion, and their values."""
    return geometry.sink_tokens * kv_bytes_per_token(config, precision)


def placed_layer_bytes(config: DiTConfig, geometry: Geometry, precision: KVPrecision) -> int:
    """Return the bytes of one layer of the reference keys, rotated for one block in flight."""
    return geometry.tokens_per_frame * kv_bytes_per_token(config, precision) // 2


def text_kv_layer_bytes(config: DiTConfig, precision: KVPrecision) -> int:
    """Return the bytes of one layer of the prompt's keys and values."""
    return config.text_len * kv_bytes_per_token(config, precision)


def audio_conditioning_bytes(config: DiTConfig, precision: Precision) -> int:
    """Return the bytes that the injectors keep of one block's audio: AdaLN rows, keys and values."""
    frames, tokens = config.latents_per_block, config.num_audio_token + 1
    per_frame = 2 * config.dim * (1 + tokens)
    return len(config.audio_inject_layers) * frames * per_frame * plain_bytes(precision)


def block_inputs_bytes(
    config: DiTConfig, geometry: Geometry, precision: Precision, *, has_pose: bool
) -> int:
    """Return the bytes that a block in flight holds of its audio and of its pose's tokens, in float32."""
    audio = audio_conditioning_bytes(config, precision)
    pose = 4 * config.dim * geometry.latents_per_block * geometry.tokens_per_frame
    return audio + pose if has_pose else audio


# Working memory of a tick


def attention_workspace_bytes(config: DiTConfig, geometry: Geometry, precision: Precision) -> int:
    """Return the bytes of the keys and values of ring and sink side by side, of one layer and lane."""
    tokens = geometry.window * geometry.tokens_per_frame + geometry.sink_tokens
    return tokens * 2 * config.dim * plain_bytes(precision)


def tick_bytes(
    config: DiTConfig,
    geometry: Geometry,
    precision: Precision,
    *,
    num_lanes: int,
    split: float = 1,
    kernels: KernelName = "plain",
    attends: KeyReading = "joined",
    as_stored: bool = False,
    num_characters: int = 1,
) -> int:
    """Return the most that one tick holds beside weights, rings and conditions.

    `attends`: how attention finds the keys; `as_stored`: weights are multiplied as they are, for which
    activations are quantised. Counted on the modules, every path (`tests/planning/test_sizes_counted.py`).
    """
    b, ratio = plain_bytes(precision), config.ffn_dim / config.dim
    numbers = num_lanes * lane_numbers(config, geometry) / split
    row = _ROW_BYTES.get(precision, b) if as_stored else b
    workspace = 0.0
    if attends == "joined":
        workspace = attention_workspace_bytes(config, geometry, precision) / split
    if kernels == "plain":
        hidden = _PLAIN_HIDDEN_BYTES.get(precision, 2 * b) if as_stored else 2 * b
        phases = (
            (2.4 + 8.05 * b) * numbers + workspace,
            # The norm of the text's queries, and the residual stream, in float32.
            (14.6 + 7.8 * b) * numbers,
            (8.1 + hidden * ratio) * numbers,
        )
    else:
        # Input and results of attention, lane by lane; with "by parts" those of three parts, and their sums.
        part = 3 * (b + 4 / config.head_dim) if attends == "by parts" else 0.0
        lanes = (num_lanes + 1) * b + part
        hidden = b + row + (b if precision == "nvfp4" and as_stored else 0)
        phases = (
            (4.1 + row + 3 * b + lanes / num_lanes) * numbers + workspace,
            # Attention to the text.
            (8.1 + row + 3 * b) * numbers,
            (8.1 + hidden * ratio) * numbers,
        )
    return int(max(*phases, audio_encoding_bytes(config, num_characters)))


_ROW_BYTES: Mapping[Precision, float] = MappingProxyType({"fp8": 1.0, "nvfp4": 0.5625})
"""Bytes of a quantised activation."""
_PLAIN_HIDDEN_BYTES: Mapping[Precision, float] = MappingProxyType({"fp8": 9.0, "nvfp4": 35.0})
"""Bytes for a number of the feed-forward while PyTorch's operators quantise it."""


def lane_numbers(config: DiTConfig, geometry: Geometry) -> int:
    """Return the numbers of one lane's hidden states."""
    return geometry.latents_per_block * geometry.tokens_per_frame * config.dim


def audio_encoding_bytes(config: DiTConfig, num_characters: int = 1) -> int:
    """Return the most that encoding one block's audio holds: fp32 copies of the widest convolutions."""
    third, second = config.dim * config.dim // 2, config.dim * config.dim // 8
    features = (
        config.num_audio_layers
        * config.audio_dim
        * (config.motion_frames + config.video_frames_per_block)
    )
    return _FP32 * (3 * (third + second) + 2 * num_characters * features)


# Encoders and decoder


_DECODE_UNITS = 7.0
"""Full-size activations alive while one latent frame is decoded: 5.1 counted, 5.4 with the fused kernels,
the rest for cuDNN and the picture that tiles are blended in."""
_ENCODE_UNITS = 15.0
"""The same while a still picture is encoded: about 13 counted, the rest for cuDNN."""


@cache
def vae_bytes(config: VAEConfig, precision: Precision = "bf16") -> int:
    """Return the bytes of the weights of encoder and decoder."""
    return num_parameters(vae_tensors(config)) * plain_bytes(precision)


@cache
def decoder_state_bytes(
    config: VAEConfig, latent_height: int, latent_width: int, *, precision: Precision = "bf16"
) -> int:
    """Return the bytes of the decoder's state: two frames of the input of every causal convolution."""
    area = latent_height * latent_width
    first = config.dim * config.dim_mult[-1]
    numbers = area * (config.z_dim + 4 * first)
    channels = first
    for stage in decoder_stages(config):
        blocks = stage.in_dim + (2 * config.num_res_blocks + 1) * stage.out_dim
        numbers += area * (blocks + stage.out_dim * stage.doubles_frames)
        channels, area = stage.out_dim, area * (4 if stage.upsamples else 1)
    return 2 * (numbers + area * channels) * plain_bytes(precision)


def _frames_bytes(config: VAEConfig, height: int, width: int, precision: Precision) -> int:
    """Return the activations of one latent frame at full size: `dim` channels of its video frames."""
    return config.dim * config.temporal_factor * height * width * plain_bytes(precision)


def decode_work_bytes(
    config: VAEConfig, height: int, width: int, *, precision: Precision = "bf16"
) -> int:
    """Return the most that decoding a picture of this size holds beside weights and state."""
    return int(_DECODE_UNITS * _frames_bytes(config, height, width, precision))


def encode_work_bytes(
    config: VAEConfig, height: int, width: int, *, precision: Precision = "bf16"
) -> int:
    """Return the most that encoding a still picture holds beside the weights."""
    return int(_ENCODE_UNITS * _frames_bytes(config, height, width, precision))


@cache
def text_encoder_bytes(config: TextConfig) -> int:
    """Return the bytes of the text encoder in bf16."""
    return num_parameters(text_tensors(config)) * _BF16


@cache
def speech_encoder_bytes(shape: SpeechShape) -> int:
    """Return the bytes of the speech encoder in fp32."""
    return num_speech_parameters(shape) * _FP32


@cache
def text_work_bytes(config: TextConfig) -> int:
    """Return the most that encoding a prompt in bf16 holds beside the weights.

    Two biases of attention, of all heads; or the table of distances, in whole numbers; or the feed-forward.
    """
    length, dim, inner = config.text_len, config.dim, config.dim_attn
    phases = (
        _BF16 * length * (2 * config.num_heads * length + 4 * dim + 3 * inner),
        7 * 8 * length * length,
        4 * _BF16 * length * (dim + config.dim_ffn),
    )
    return max(phases) + 8 * length


SPEECH_WINDOW_S = 60
"""The longest sound that the speech encoder's layers take in one pass."""
SPEECH_PIECE_S = 10
"""The longest that its convolutions take."""
_SPEECH_RATE = 50


@cache
def speech_features_bytes(shape: SpeechShape) -> int:
    """Return what a session keeps of one pass of the speech encoder: all layers, in fp32."""
    return _FP32 * _window_numbers(shape) * (shape.num_hidden_layers + 1)


@cache
def speech_work_bytes(shape: SpeechShape) -> int:
    """Return the most that the speech encoder holds beside weights and features.

    Layer by layer: the results of those before, and attention or feed-forward; then all layers twice, while
    they are joined. Or the first convolution, of its input's whole length.
    """
    layers, ratio = shape.num_hidden_layers, shape.intermediate_size / shape.hidden_size
    units = max(layers + 2 + 2 * ratio, layers + 6, 2 * (layers + 1) + 1)
    window = int(_FP32 * _window_numbers(shape) * units) - speech_features_bytes(shape)
    positions = SPEECH_PIECE_S * _SPEECH_RATE * prod(shape.conv_stride[1:])
    return max(window, 2 * _FP32 * positions * shape.conv_dim[0])


def speech_bytes(shape: SpeechShape) -> int:
    """Return all memory of the speech encoder of one session."""
    return speech_encoder_bytes(shape) + speech_features_bytes(shape) + speech_work_bytes(shape)


def _window_numbers(shape: SpeechShape) -> int:
    """Return the numbers of one layer over a window and what is mirrored at its ends."""
    features = SPEECH_WINDOW_S * _SPEECH_RATE + shape.num_conv_pos_embeddings
    return features * shape.hidden_size
