"""Adapters as every trainer of this family writes them, and what merging them must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lipcast.config.precision import StoredPrecision
from lipcast.weights.bundle import open_transformer
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.source import TensorSource

LAYERS = (
    "blocks.0.self_attn.q", "blocks.3.self_attn.o", "blocks.1.cross_attn.k", "blocks.0.ffn.0",
    "blocks.2.ffn.2", "time_projection.1", "audio_injector.injector.0.v", "head.head",
)  # fmt: skip
DIFFUSERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.3.self_attn.o": "blocks.3.attn1.to_out.0",
    "blocks.1.cross_attn.k": "blocks.1.attn2.to_k",
    "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
    "blocks.2.ffn.2": "blocks.2.ffn.net.2",
    "time_projection.1": "condition_embedder.time_proj",
    "audio_injector.injector.0.v": "audio_injector.injector.0.to_v",
    "head.head": "proj_out",
}
Spell = Callable[[str], tuple[str, str, str]]


def dotted(prefix: str, a: str, b: str, names: Mapping[str, str] | None = None) -> Spell:
    """Return a spelling with dots: the keys of A, B and alpha of a layer."""

    def spell(layer: str) -> tuple[str, str, str]:
        name = prefix + (names or {}).get(layer, layer)
        return f"{name}.{a}", f"{name}.{b}", f"{name}.alpha"

    return spell


def underscored(prefix: str, names: Mapping[str, str] | None = None, dot: str = "_") -> Spell:
    def spell(layer: str) -> tuple[str, str, str]:
        name = prefix + (names or {}).get(layer, layer).replace(".", dot)
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"

    return spell


PEFT, SHORT = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
SPELLINGS: dict[str, Spell] = {
    "no prefix": dotted("", *PEFT),
    "peft": dotted("base_model.model.", *PEFT),
    "peft, adapter named": dotted(
        "base_model.model.", "lora_A.style.weight", "lora_B.style.weight"
    ),
    "ComfyUI": dotted("diffusion_model.", *PEFT),
    "ComfyUI, whole model": dotted("model.diffusion_model.", *SHORT),
    "lightx2v": dotted("diffusion_model.", *SHORT),
    "transformer.blocks": dotted("transformer.", *PEFT),
    "diffusers": dotted("transformer.", *PEFT, DIFFUSERS),
    "diffusers, old": dotted("unet.", "lora.down.weight", "lora.up.weight", DIFFUSERS),
    "diffusers, no prefix": dotted("", "lora_A.default.weight", "lora_B.default.weight", DIFFUSERS),
    "DiffSynth": dotted("pipe.dit.", "lora_A.default.weight", "lora_B.default.weight"),
    "dit": dotted("dit.", *PEFT),
    "DDP": dotted("module.", *PEFT),
    "unknown prefix": dotted("my.own_model.", *PEFT),
    "kohya": underscored("lora_unet_"),
    "kohya, two underscores": underscored("lora_unet__", dot="__"),
    "kohya, then dots": dotted("lora_unet_", *SHORT),
    "kohya of diffusers": underscored("lora_transformer_", DIFFUSERS),
    "LyCORIS": underscored("lycoris_"),
}


def merged(original: Path, *loras: str, precision: StoredPrecision | None = None) -> TensorSource:
    return open_transformer(find_checkpoint(original), loras=loras, precision=precision)


def factors(base: TensorSource, layer: str, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return A and B of a layer, so large that a wrong scale shows in any precision."""
    shape = base.infos[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(seed + len(layer))
    a = torch.randn(rank, prod(shape[1:]), generator=generator)
    return a, torch.randn(shape[0], rank, generator=generator) / sqrt(rank)


def adapter(
    base: TensorSource, spell: Spell, *, rank: int = 4, alpha: float | None = None
) -> dict[str, Tensor]:
    tensors = {}
    for layer in LAYERS:
        a, b = factors(base, layer, rank)
        for key, tensor in zip(spell(layer), (a, b, alpha), strict=True):
            if tensor is not None:
                tensors[key] = torch.as_tensor(tensor)
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return str(path)


def by_definition(base: TensorSource, layer: str, scale: float, rank: int = 4) -> Tensor:
    a, b = factors(base, layer, rank)
    weight = base.read(f"{layer}.weight").float()
    return weight + scale * (b @ a).view_as(weight)


def assert_merged(
    base: TensorSource, found: TensorSource, scale: float | Mapping[str, float], rank: int = 4
) -> None:
    for layer in LAYERS:
        wanted = scale if isinstance(scale, float) else scale[layer]
        torch.testing.assert_close(
            found.read(f"{layer}.weight"), by_definition(base, layer, wanted, rank)
        )
