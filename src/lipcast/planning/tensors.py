"""Names and shapes of every weight of the four networks, derived from their configs.

Inputs: DiTConfig, VAEConfig, TextConfig, SpeechShape. Outputs: {official name: shape}, in the order
of the checkpoint, without opening one. Invariant: for the published configs the lists equal
the published checkpoints', name by name (tests pin a digest of them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from lipcast.config.models import DiTConfig, SpeechShape, TextConfig, VAEConfig

Shape = tuple[int, ...]
Tensors = dict[str, Shape]

_RGB = 3


def num_parameters(tensors: Tensors) -> int:
    """Return how many numbers the tensors hold together."""
    return sum(prod(shape) for shape in tensors.values())


# The transformer


def dit_tensors(config: DiTConfig) -> Tensors:
    """Return all weights of the transformer: those outside the layers and those of every layer."""
    found = dict(dit_root_tensors(config))
    for layer in range(config.num_layers):
        found.update(dit_layer_tensors(config, layer))
    return found


def dit_layer_tensors(config: DiTConfig, layer: int) -> Tensors:
    """Return one transformer block and, where audio is injected after it, its injector."""
    found = dict(_block(config, f"blocks.{layer}"))
    if layer in config.audio_inject_layers:
        found.update(_injector(config, config.audio_inject_layers.index(layer)))
    return found


WeightUse = Literal["tick", "audio", "prompt"]
"""How often weights of a layer are needed: every tick, once per block (its audio), once per prompt."""
WEIGHT_USES: tuple[WeightUse, ...] = get_args(WeightUse)


def dit_used_tensors(config: DiTConfig, layer: int, use: WeightUse) -> Tensors:
    """Return the tensors of a layer that this use needs."""
    found = dit_layer_tensors(config, layer)
    return {name: shape for name, shape in found.items() if weight_use(name) == use}


def weight_use(name: str) -> WeightUse:
    """Return the use of a tensor of a layer; keys and values of prompt and audio are made beforehand."""
    makes_keys = _KEYS_VALUES.search(name) is not None
    if ".cross_attn." in name and makes_keys:
        return "prompt"
    is_injector = name.startswith("audio_injector.")
    if is_injector and (makes_keys or ".injector_adain_layers." in name):
        return "audio"
    return "tick"


_KEYS_VALUES = re.compile(r"\.(k|v|norm_k)\.")


def dit_root_tensors(config: DiTConfig) -> Tensors:
    """Return everything outside the layers: embeddings, frame packer, audio encoder, head."""
    dim, patch = config.dim, config.patch_size
    patch_out = prod(patch) * config.out_dim
    packed = (config.in_dim, *patch)
    return {
        **_linear("patch_embedding", dim, *packed),
        **_linear("text_embedding.0", dim, config.text_dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", dim, config.freq_dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", 6 * dim, dim),
        "head.modulation": (1, 2, dim),
        **_linear("head.head", patch_out, dim),
        **_linear("cond_encoder", dim, config.cond_dim, *patch),
        **_audio_encoder(config),
        "trainable_cond_mask.weight": (3, dim),
        **_linear("frame_packer.proj", dim, config.in_dim, 1, 2, 2),
        **_linear("frame_packer.proj_2x", dim, config.in_dim, 2, 4, 4),
        **_linear("frame_packer.proj_4x", dim, config.in_dim, 4, 8, 8),
    }


def _linear(name: str, out_features: int, *rest: int) -> Tensors:
    return {f"{name}.weight": (out_features, *rest), f"{name}.bias": (out_features,)}


def _attention(name: str, dim: int) -> Tensors:
    projections = {
        key: shape for p in "qkvo" for key, shape in _linear(f"{name}.{p}", dim, dim).items()
    }
    return {**projections, f"{name}.norm_q.weight": (dim,), f"{name}.norm_k.weight": (dim,)}


def _block(config: DiTConfig, name: str) -> Tensors:
    dim = config.dim
    return {
        f"{name}.modulation": (1, 6, dim),
        **_attention(f"{name}.self_attn", dim),
        f"{name}.norm3.weight": (dim,),
        f"{name}.norm3.bias": (dim,),
        **_attention(f"{name}.cross_attn", dim),
        **_linear(f"{name}.ffn.0", config.ffn_dim, dim),
        **_linear(f"{name}.ffn.2", dim, config.ffn_dim),
    }


def _injector(config: DiTConfig, index: int) -> Tensors:
    dim = config.dim
    return {
        **_attention(f"audio_injector.injector.{index}", dim),
        **_linear(f"audio_injector.injector_adain_layers.{index}.linear", 2 * dim, dim),
    }


def _audio_encoder(config: DiTConfig) -> Tensors:
    name, dim = "casual_audio_encoder.encoder", config.dim
    quarter, half = dim // 4, dim // 2
    return {
        "casual_audio_encoder.weights": (1, config.num_audio_layers, 1, 1),
        f"{name}.padding_tokens": (1, 1, 1, dim),
        **_linear(
            f"{name}.conv1_local.conv", quarter * config.num_audio_token, config.audio_dim, 3
        ),
        **_linear(f"{name}.conv1_global.conv", quarter, config.audio_dim, 3),
        **_linear(f"{name}.conv2.conv", half, quarter, 3),
        **_linear(f"{name}.conv3.conv", dim, half, 3),
        **_linear(f"{name}.final_linear", dim, dim),
    }


# The video autoencoder


def vae_tensors(config: VAEConfig) -> Tensors:
    """Return encoder, decoder and the two 1x1x1 convolutions between them."""
    z_dim = config.z_dim
    return {
        **_vae_encoder(config),
        **_linear("conv1", 2 * z_dim, 2 * z_dim, 1, 1, 1),
        **_linear("conv2", z_dim, z_dim, 1, 1, 1),
        **vae_decoder_tensors(config),
    }


def _vae_encoder(config: VAEConfig) -> Tensors:
    dims = [config.dim * mult for mult in (1, *config.dim_mult)]
    found = _linear("encoder.conv1", dims[0], _RGB, 3, 3, 3)
    index = 0
    for stage, out_dim in enumerate(dims[1:]):
        for in_dim in (dims[stage], *(out_dim,) * (config.num_res_blocks - 1)):
            found.update(_residual(f"encoder.downsamples.{index}", in_dim, out_dim))
            index += 1
        if stage < len(config.temporal_downsample):
            name = f"encoder.downsamples.{index}"
            found.update(_linear(f"{name}.resample.1", out_dim, out_dim, 3, 3))
            if config.temporal_downsample[stage]:
                found.update(_linear(f"{name}.time_conv", out_dim, out_dim, 3, 1, 1))
            index += 1
    return {**found, **_middle_and_head("encoder", dims[-1], dims[-1], 2 * config.z_dim)}


def vae_decoder_tensors(config: VAEConfig) -> Tensors:
    """Return the decoder alone."""
    dims = [stage.out_dim for stage in decoder_stages(config)]
    found = _linear("decoder.conv1", dims[0], config.z_dim, 3, 3, 3)
    index = 0
    for stage in decoder_stages(config):
        for in_dim in (stage.in_dim, *(stage.out_dim,) * config.num_res_blocks):
            found.update(_residual(f"decoder.upsamples.{index}", in_dim, stage.out_dim))
            index += 1
        if stage.upsamples:
            name = f"decoder.upsamples.{index}"
            found.update(_linear(f"{name}.resample.1", stage.out_dim // 2, stage.out_dim, 3, 3))
            if stage.doubles_frames:
                found.update(
                    _linear(f"{name}.time_conv", 2 * stage.out_dim, stage.out_dim, 3, 1, 1)
                )
            index += 1
    return {**found, **_middle_and_head("decoder", dims[0], dims[-1], _RGB)}


@dataclass(frozen=True, slots=True)
class DecoderStage:
    """One resolution of the decoder: `num_res_blocks` + 1 residual blocks, then twice the size."""

    in_dim: int
    out_dim: int
    upsamples: bool
    doubles_frames: bool


def decoder_stages(config: VAEConfig) -> Iterator[DecoderStage]:
    """Yield the decoder's resolutions, smallest first; an upsampling halves the channels."""
    doubling = tuple(reversed(config.temporal_downsample))
    in_dim = config.dim * config.dim_mult[-1]
    for index, mult in enumerate(reversed(config.dim_mult)):
        out_dim = config.dim * mult
        upsamples = index < len(doubling)
        yield DecoderStage(in_dim, out_dim, upsamples, upsamples and doubling[index])
        in_dim = out_dim // 2


def _residual(name: str, in_dim: int, out_dim: int) -> Tensors:
    found = {
        f"{name}.residual.0.gamma": (in_dim, 1, 1, 1),
        **_linear(f"{name}.residual.2", out_dim, in_dim, 3, 3, 3),
        f"{name}.residual.3.gamma": (out_dim, 1, 1, 1),
        **_linear(f"{name}.residual.6", out_dim, out_dim, 3, 3, 3),
    }
    if in_dim != out_dim:
        found.update(_linear(f"{name}.shortcut", out_dim, in_dim, 1, 1, 1))
    return found


def _middle_and_head(name: str, middle_dim: int, head_dim: int, out_dim: int) -> Tensors:
    attention = f"{name}.middle.1"
    return {
        **_residual(f"{name}.middle.0", middle_dim, middle_dim),
        f"{attention}.norm.gamma": (middle_dim, 1, 1),
        **_linear(f"{attention}.to_qkv", 3 * middle_dim, middle_dim, 1, 1),
        **_linear(f"{attention}.proj", middle_dim, middle_dim, 1, 1),
        **_residual(f"{name}.middle.2", middle_dim, middle_dim),
        f"{name}.head.0.gamma": (head_dim, 1, 1, 1),
        **_linear(f"{name}.head.2", out_dim, head_dim, 3, 3, 3),
    }


# Text and speech


def text_tensors(config: TextConfig) -> Tensors:
    """Return the UMT5 encoder; its linear layers have no bias, every block has its own position table."""
    found: Tensors = {"token_embedding.weight": (config.vocab_size, config.dim)}
    for layer in range(config.num_layers):
        name, dim, inner, ffn = f"blocks.{layer}", config.dim, config.dim_attn, config.dim_ffn
        found[f"{name}.norm1.weight"] = (dim,)
        found.update({f"{name}.attn.{p}.weight": (inner, dim) for p in "qkv"})
        found[f"{name}.attn.o.weight"] = (dim, inner)
        found[f"{name}.norm2.weight"] = (dim,)
        found[f"{name}.ffn.gate.0.weight"] = (ffn, dim)
        found[f"{name}.ffn.fc1.weight"] = (ffn, dim)
        found[f"{name}.ffn.fc2.weight"] = (dim, ffn)
        found[f"{name}.pos_embedding.embedding.weight"] = (config.num_buckets, config.num_heads)
    return {**found, "norm.weight": (config.dim,)}


def num_speech_parameters(shape: SpeechShape) -> int:
    """Return the number of parameters of the wav2vec2 encoder (layer-norm feature extractor, no CTC head)."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    inputs = (1, *shape.conv_dim[:-1])
    convolutions = sum(
        out * (channels * kernel + 3)
        for out, channels, kernel in zip(shape.conv_dim, inputs, shape.conv_kernel, strict=True)
    )
    last = shape.conv_dim[-1]
    projection = 2 * last + hidden * (last + 1)
    kernel = shape.num_conv_pos_embeddings
    position = hidden * (hidden // shape.num_conv_pos_embedding_groups) * kernel + kernel + hidden
    layer = 4 * hidden * (hidden + 1) + ffn * (hidden + 1) + hidden * (ffn + 1) + 4 * hidden
    return convolutions + projection + position + shape.num_hidden_layers * layer + 2 * hidden
