"""One `.pth` file of PyTorch: a pickled {name: tensor}, read without running any code in it.

The file is mapped, never read whole. Pages that were touched count as this process's memory as
long as the mapping lives, so a new mapping is made after every gigabyte handed out; a tensor that
somebody still holds keeps its own mapping alive.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcast.errors import CheckpointError
from lipcast.weights.source import TensorInfo, TensorSource

REMAP_BYTES = 1 << 30
_NESTED = ("state_dict", "model_state_dict", "model", "module", "weights", "lora", "ema")
"""Keys under which a trainer's checkpoint holds the weights."""


class PthSource(TensorSource):
    """The tensors of one `.pth`, `.pt` or `.bin` file."""

    def __init__(self, path: Path) -> None:
        self.path, self.files, self.metadata = path, (path,), {}
        self._tensors = _map_tensors(path)
        self._handed_out_bytes = 0
        self.infos = {n: TensorInfo(n, tuple(t.shape), t.dtype) for n, t in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        if self._handed_out_bytes > REMAP_BYTES:
            self._tensors, self._handed_out_bytes = _map_tensors(self.path), 0
        self._handed_out_bytes += self.infos[name].num_bytes
        return self._tensors[name]


def _map_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Files older than PyTorch 1.6 are plain pickles, which cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # zipfile and the unpickler raise whatever broken bytes lead them to
        raise CheckpointError(
            f"{path}: expected a PyTorch weight file, but it cannot be read "
            f"({_first_line(error)}); it is damaged or cut short, download it again"
        ) from error
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return {name: tensor}, which trainers put under a name among other things."""
    inner = [content[key] for key in _NESTED if isinstance(content, dict) and key in content]
    if len(inner) == 1 and _is_state(inner[0]):
        content = inner[0]
    if not _is_state(content):
        raise CheckpointError(
            f"{path}: expected {{name: tensor}}, got {type(content).__name__}; "
            "extract the model's state dict first"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(t, Tensor) and t.layout == torch.strided for t in content.values())
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
