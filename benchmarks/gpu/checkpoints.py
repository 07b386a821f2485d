"""Checkpoints with the published file set, true or small shapes, and random weights.

They are written once into a temporary folder and loaded through the public door, so a check exercises
what a user's model does. Weights are normally distributed with the spread that keeps activations in
range, signs and all: a card's clock depends on the bits that it multiplies.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import StoredPrecision
from lipcast.models.speech import SpeechConfig, SpeechEncoder
from lipcast.planning.tensors import dit_tensors, vae_tensors
from lipcast.weights.load import without_memory
from lipcast.weights.prompts import PromptEmbedding, write_embedding
from lipcast.weights.quant import kept_because
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorInfo
from lipcast.weights.writer import header_bytes

WAV2VEC2: Mapping[str, Any] = {
    "model_type": "wav2vec2", "hidden_size": 1024, "num_hidden_layers": 24,
    "intermediate_size": 4096, "num_attention_heads": 16, "conv_bias": True,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_dim": [512] * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
_NOISE = 1 << 22
"""Values that are drawn; tensors are cut from them."""
_WEIGHT_SPREAD, _FP8_SPREAD, _INT4_SPREAD = 0.02, 64.0, 4.6
"""Standard deviations: of a weight, and of the numbers that store it."""
_EMBEDDING = "prompt.safetensors"


@dataclass(frozen=True, slots=True)
class Shapes:
    """The networks of one checkpoint."""

    dit: DiTConfig
    vae: VAEConfig
    speech: Mapping[str, Any]


FULL = Shapes(DiTConfig(), VAEConfig(), WAV2VEC2)
MIDDLE = Shapes(
    DiTConfig(
        dim=1536, ffn_dim=4096, num_heads=12, num_layers=12, text_dim=512, text_len=128,
        audio_dim=1024, num_audio_layers=5, audio_inject_layers=(0, 4, 8),
    ),
    VAEConfig(dim=32),
    {**WAV2VEC2, "num_hidden_layers": 4},
)  # fmt: skip
"""Big enough to run out of a GPU's memory on purpose, small enough to be written in seconds."""
SMALL = Shapes(
    DiTConfig(
        dim=192, ffn_dim=384, num_heads=4, num_layers=6, text_dim=64, text_len=64, audio_dim=64,
        num_audio_layers=4, audio_inject_layers=(0, 3),
    ),
    VAEConfig(dim=8, dim_mult=(1, 2, 2, 4), num_res_blocks=1),
    {
        **WAV2VEC2, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128,
        "num_attention_heads": 4, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RandomCheckpoint:
    """A folder to load, and the embedding of a prompt that it knows."""

    folder: Path
    prompt: Path


def random_checkpoint(name: str, shapes: Shapes, precision: StoredPrecision) -> RandomCheckpoint:
    """Return the checkpoint of a name and precision; written if it is not there."""
    folder = Path(tempfile.gettempdir()) / f"lipcast-gpu-check-{name}-{precision}"
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, shapes, precision)
        done.touch()
    return RandomCheckpoint(folder, folder / _EMBEDDING)


def room_for_bytes() -> int:
    """Free bytes of the disk that the checkpoints lie on."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _write(folder: Path, shapes: Shapes, precision: StoredPrecision) -> None:
    (folder / "config.json").write_text(json.dumps(asdict(shapes.dit)))
    vae = asdict(shapes.vae)
    vae["temperal_downsample"] = vae.pop("temporal_downsample")
    (folder / "vae_config.json").write_text(json.dumps(vae))
    noise = _Noise()
    dit = list(dit_infos(shapes.dit, precision))
    _write_file(folder / "diffusion_pytorch_model.safetensors", dit, noise)
    _write_file(folder / "Wan2.1_VAE.safetensors", _plain(vae_tensors(shapes.vae)), noise)
    speech = folder / "wav2vec2"
    speech.mkdir()
    (speech / "config.json").write_text(json.dumps(shapes.speech))
    _write_file(speech / "model.safetensors", _speech_infos(shapes.speech), noise)
    context = torch.randn(min(120, shapes.dit.text_len), shapes.dit.text_dim)
    write_embedding(folder / _EMBEDDING, PromptEmbedding(context, "random", "random"))


def dit_infos(config: DiTConfig, precision: StoredPrecision) -> Iterator[TensorInfo]:
    """The transformer's tensors in stored form."""
    scheme = SCHEMES.get(precision)
    for name, shape in dit_tensors(config).items():
        plain = TensorInfo(name, shape, torch.bfloat16)
        if scheme is None or kept_because(plain) is not None or not scheme.fits(shape[1]):
            yield plain
            continue
        layer = name.removesuffix(".weight")
        for part, (part_shape, dtype) in scheme.part_shapes(*shape).items():
            yield TensorInfo(f"{layer}.{part}", part_shape, dtype)


def _plain(shapes: Mapping[str, tuple[int, ...]]) -> list[TensorInfo]:
    return [TensorInfo(name, shape, torch.float32) for name, shape in shapes.items()]


def _speech_infos(config: Mapping[str, Any]) -> list[TensorInfo]:
    with without_memory():
        encoder = SpeechEncoder(SpeechConfig.from_json(config))
    return [
        TensorInfo(name.removeprefix("model."), tuple(tensor.shape), torch.float32)
        for name, tensor in encoder.state_dict().items()
    ]


class _Noise:
    """Cuts tensors from one piece of noise in every dtype."""

    def __init__(self) -> None:
        self._normal = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))
        self._by_dtype: dict[tuple[torch.dtype, float], bytes] = {}

    def chunks(self, info: TensorInfo) -> Iterator[memoryview]:
        """Bytes of a tensor."""
        piece = memoryview(self._piece(info.dtype, _spread(info)))
        centre = _centre(info)
        if centre is not None:
            filled = torch.full((info.num_elements,), centre, dtype=info.dtype)
            piece = memoryview(filled.view(torch.uint8).numpy()).cast("B")
        left = info.num_bytes
        while left:
            count = min(left, len(piece))
            yield piece[:count]
            left -= count

    def _piece(self, dtype: torch.dtype, spread: float) -> bytes:
        key = dtype, spread
        if key not in self._by_dtype:
            values = _stored(self._normal * spread, dtype)
            self._by_dtype[key] = values.view(torch.uint8).numpy().tobytes()
        return self._by_dtype[key]


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as a weight's bytes; two integers of 4 bits are evenly distributed."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, values.shape, dtype=dtype)
    return values.clamp(-127, 127).to(dtype)


def _spread(info: TensorInfo) -> float:
    """Standard deviation; quantised numbers use their whole range, which the scale undoes."""
    if info.dtype == torch.float8_e4m3fn:
        return _FP8_SPREAD
    if info.dtype == torch.int8:
        return _FP8_SPREAD / 2
    fan_in = prod(info.shape[1:])
    return fan_in**-0.5 if fan_in > 1 else 0.02


def _centre(info: TensorInfo) -> float | None:
    """The value of tensors that are no noise: norms, scales of quantised weights."""
    leaf = info.name.rpartition(".")[2]
    if leaf == "scale":
        return _WEIGHT_SPREAD / (_INT4_SPREAD if info.dtype == torch.bfloat16 else _FP8_SPREAD)
    if leaf == "minimum":
        return -7.5 * _WEIGHT_SPREAD / _INT4_SPREAD
    is_norm = "norm" in info.name and leaf == "weight" and len(info.shape) == 1
    return 1.0 if is_norm or leaf == "gamma" or info.name.endswith("original0") else None


def _write_file(path: Path, infos: list[TensorInfo], noise: _Noise) -> None:
    with path.open("wb") as file:
        file.write(header_bytes(infos, {"format": "pt"}))
        for info in infos:
            file.writelines(noise.chunks(info))
