"""A transformer of few numbers, its weights as a source, and the shape of a small session."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lipcast.config.models import DiTConfig
from lipcast.memory.session_memory import SessionShape
from lipcast.models.dit import DiT
from lipcast.weights.source import TensorInfo, TensorSource

SMALL = DiTConfig(
    dim=64,
    ffn_dim=64,
    num_heads=2,
    num_layers=4,
    text_dim=16,
    text_len=8,
    freq_dim=16,
    audio_dim=16,
    num_audio_layers=2,
    audio_inject_layers=(0, 2),
)
SHAPE = SessionShape(
    window=4,
    tokens_per_frame=4,
    latent_height=4,
    latent_width=4,
    num_steps=2,
    num_lanes=2,
    start_frame=0,
)


@cache
def small_dit() -> DiT:
    """Return the model with random weights; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiT(SMALL).eval().requires_grad_(False)


class ModelTensors(TensorSource):
    """The tensors of `small_dit`."""

    def __init__(self) -> None:
        self.path, self.files, self.metadata = Path("small"), (), {}
        self.tensors: Mapping[str, Tensor] = small_dit().state_dict()
        self.infos = {
            name: TensorInfo(name, tuple(tensor.shape), tensor.dtype)
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        return self.tensors[name]
