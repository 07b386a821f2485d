"""Checkpoints with the published file set and random weights, at any scale.

Input: the configs of the three networks. Output: a directory with the official names, dtypes and
split into shards, for tests and benchmarks. `sparse` writes headers over empty space: the true 14B
shapes then cost no disk, and every weight is zero. The speech encoder is the embedded model's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lipcast.config.models import DiTConfig, TextConfig, VAEConfig
from lipcast.planning.tensors import dit_tensors, num_parameters, text_tensors, vae_tensors
from lipcast.weights.checkpoint import DIT_NAME, INDEX_SUFFIX
from lipcast.weights.disk import write_text
from lipcast.weights.shards import plan_shards
from lipcast.weights.source import TensorInfo
from lipcast.weights.writer import header_bytes, write_safetensors

PUBLISHED_SHARD_SHARE = 10e9 / 32.6e9
"""Published shards hold 10 GB of 32.6."""
_TEMPLATE = (("Sequence", "A"), ("Sequence", "B"), ("SpecialToken", "</s>"))
_VARIANT = MappingProxyType(
    {
        "_class_name": "WanModel_S2V", "model_type": "s2v", "qk_norm": True,
        "cross_attn_norm": True, "enable_adain": True, "adain_mode": "attn_norm",
        "zero_timestep": True, "enable_motioner": False, "enable_framepack": True,
        "framepack_drop_mode": "padd", "enable_tsm": False,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyntheticConfigs:
    """The networks of one checkpoint."""

    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig


PUBLISHED = SyntheticConfigs(DiTConfig(), VAEConfig(), TextConfig())
SMALL = SyntheticConfigs(
    DiTConfig(
        dim=128, ffn_dim=256, num_heads=4, num_layers=4, text_dim=64, text_len=128, audio_dim=64,
        num_audio_layers=4, audio_inject_layers=(0, 2),
    ),
    VAEConfig(dim=16, dim_mult=(1, 2, 2, 4), num_res_blocks=1),
    TextConfig(vocab_size=300, dim=64, dim_attn=64, dim_ffn=128, num_heads=4, num_layers=2,
               text_len=128),
)  # fmt: skip
"""Loads and runs in a second; the audio width is that of the embedded speech encoder."""


def configs_of_size(dit_bytes: int, *, dim: int = 1024) -> SyntheticConfigs:
    """SMALL with a transformer of the given width and at least `dit_bytes` in bf16."""
    wide = replace(SMALL.dit, dim=dim, ffn_dim=4 * dim, num_heads=dim // 64, num_layers=1)
    wide = replace(wide, audio_inject_layers=(0,))
    one = num_parameters(dit_tensors(wide))
    layer = num_parameters(dit_tensors(replace(wide, num_layers=2))) - one
    num_layers = 1 + max(0, -(-(dit_bytes // 2 - one) // layer))
    return replace(SMALL, dit=replace(wide, num_layers=num_layers))


def _official_keys(config: DiTConfig) -> dict[str, Any]:
    """Return the configuration under the keys of a published `config.json`."""
    values = dict(_VARIANT) | asdict(config)
    values["num_frames_per_block"] = values.pop("latents_per_block")
    return values


def write_synthetic(
    directory: Path, configs: SyntheticConfigs = SMALL, *, speech: Path, seed: int = 0,
    sparse: bool = False,
) -> None:  # fmt: skip
    """Write the checkpoint; `speech` is a wav2vec2 folder to copy.

    VAE and text encoder are `.pth` as published; where `sparse`, safetensors of the same tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_dit(directory, configs.dit, seed, sparse=sparse)
    vae = _infos(vae_tensors(configs.vae), torch.float32)
    text = _infos(text_tensors(configs.text), torch.bfloat16)
    _write_single(directory / "Wan2.1_VAE", vae, seed + 1, sparse=sparse)
    _write_single(directory / "models_t5_umt5-xxl-enc-bf16", text, seed + 2, sparse=sparse)
    _write_json(directory / "config.json", _official_keys(configs.dit))
    if configs.vae != VAEConfig():
        values = asdict(configs.vae)
        values["temperal_downsample"] = values.pop("temporal_downsample")
        _write_json(directory / "vae_config.json", values)
    if configs.text != TextConfig():
        _write_json(directory / "t5_config.json", asdict(configs.text))
    _write_tokenizer(directory / "google" / "umt5-xxl", configs.text.vocab_size)
    shutil.copytree(speech, directory / "wav2vec2-large-xlsr-53-english", dirs_exist_ok=True)


def random_tensor(info: TensorInfo, seed: int) -> Tensor:
    """Values that keep activations in range: matrices by their fan-in, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(info.shape, generator=generator)
    fan_in = prod(info.shape[1:])
    if fan_in > 1:
        values.mul_(fan_in**-0.5)
    elif "norm" in info.name or info.name.endswith("gamma"):
        values.mul_(0.1).add_(1)
    else:
        values.mul_(0.02)
    return values.to(info.dtype)


def _infos(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> list[TensorInfo]:
    return [TensorInfo(name, shape, dtype) for name, shape in shapes.items()]


def _write_dit(directory: Path, config: DiTConfig, seed: int, *, sparse: bool) -> None:
    infos = _infos(dit_tensors(config), torch.bfloat16)
    total = sum(info.num_bytes for info in infos)
    shards = plan_shards(infos, int(total * PUBLISHED_SHARD_SHARE))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{DIT_NAME}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_tensors(directory / name, shard, seed + 10 * number, sparse=sparse)
        weight_map |= {info.name: name for info in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / f"{DIT_NAME}{INDEX_SUFFIX}", index)


def _write_single(stem: Path, infos: list[TensorInfo], seed: int, *, sparse: bool) -> None:
    if sparse:
        _write_tensors(stem.with_name(f"{stem.name}.safetensors"), infos, seed, sparse=True)
        return
    tensors = {info.name: random_tensor(info, seed * 100_003 + n) for n, info in enumerate(infos)}
    torch.save(tensors, stem.with_name(f"{stem.name}.pth"))


def _write_tensors(path: Path, infos: list[TensorInfo], seed: int, *, sparse: bool) -> None:
    metadata = {"format": "pt"}
    if sparse:
        header = header_bytes(infos, metadata)
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(info.num_bytes for info in infos))
        return
    numbered = {info.name: (info, seed * 100_003 + n) for n, info in enumerate(infos)}
    write_safetensors(path, infos, lambda name: random_tensor(*numbered[name]), metadata=metadata)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1))


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    """A tokenizer of single characters, with umt5's first ids: <pad>, </s>, <unk>."""
    directory.mkdir(parents=True, exist_ok=True)
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        *(chr(code) for code in range(32, 29 + min(vocab_size, 224))),
    ]
    text, other, end = ({key: {"id": name, "type_id": 0}} for key, name in _TEMPLATE)
    content = {
        "version": "1.0",
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[piece, -float(index)] for index, piece in enumerate(pieces)],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, other, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
    }
    _write_json(directory / "tokenizer.json", content)
