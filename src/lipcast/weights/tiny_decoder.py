"""Loads a tiny decoder that the user supplies: TAEHV "taew2_1", `.safetensors` or `.pth`.

Input: a file with the decoder's tensors; an encoder in it is ignored. Output: a `TinyDecoder` on a
device. The widths are read from the tensors' shapes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.models.vae_tiny import TinyDecoder
from lipcast.weights.files import open_tensors
from lipcast.weights.source import TensorSource

_WIDTH_LAYERS = (1, 8, 14, 20)
"""Convolutions whose output channels are the widths."""
_PREFIX = "decoder."


def load_tiny_decoder(
    path: str | Path, *, device: torch.device | str, dtype: torch.dtype, z_dim: int = 16
) -> TinyDecoder:
    """Return the decoder of a file. Raises CheckpointError for a file of another model."""
    source = open_tensors(path)
    widths = tuple(_channels(source, f"{_PREFIX}{i}.weight") for i in _WIDTH_LAYERS)
    decoder = TinyDecoder(widths, z_dim=z_dim)
    wanted = decoder.state_dict()
    stored = {name for name in source.infos if name.startswith(_PREFIX)}
    if stored != set(wanted):
        name = min(stored ^ set(wanted))
        raise CheckpointError(
            f"{path}: expected the {len(wanted)} tensors of a taew2_1 decoder, got {len(stored)} "
            f"(the first that differs: {name}); give a file of that model"
        )
    decoder.load_state_dict({name: _fitted(source, name, like) for name, like in wanted.items()})
    return decoder.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _channels(source: TensorSource, name: str) -> int:
    info = source.infos.get(name)
    if info is None or len(info.shape) != 4:
        raise CheckpointError(
            f"{source.path}: expected {name}, a convolution, got none; "
            "give a taew2_1 file (TAEHV for Wan 2.1)"
        )
    return info.shape[0]


def _fitted(source: TensorSource, name: str, like: Tensor) -> Tensor:
    """Return a stored tensor; of one that makes more frames than needed, the rows of the last ones."""
    tensor = source.read(name)
    if tensor.shape[1:] == like.shape[1:] and tensor.shape[0] > like.shape[0]:
        tensor = tensor[-like.shape[0] :]
    if tensor.shape != like.shape:
        raise CheckpointError(
            f"{source.path}: {name}: expected shape {tuple(like.shape)}, "
            f"got {tuple(tensor.shape)}; give a file of a taew2_1 decoder"
        )
    return tensor
