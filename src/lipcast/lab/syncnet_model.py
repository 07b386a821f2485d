"""SyncNet (Chung and Zisserman 2016) as published with its weights, syncnet_v2.model.

Two chains of convolutions, one over 0.2 s of sound, one over five pictures of a face, each ending in 1024
numbers that are near each other where sound and lips belong together. Names of parameters are those of
the published file. Shapes: sound [n, 1, 13, 20] (MFCC by time), pictures [n, 3, 5, 224, 224] (BGR, 0..255).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcast.errors import CheckpointError
from lipcast.weights.load import without_memory
from lipcast.weights.pth_file import PthSource

_COUNTER = "num_batches_tracked"
"""Counter of a normalisation in training; older versions of PyTorch did not store it."""
_WIDTH, _EMBEDDING = 512, 1024
Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution with normalisation and rectifier, and the pooling after it."""

    channels: int
    kernel: Sizes
    stride: Sizes | int = 1
    padding: Sizes | int = 0
    pool: tuple[Sizes, Sizes, Sizes | int] | None = None
    """Kernel, stride and padding."""


_SOUND = (
    _Layer(64, (3, 3), padding=1, pool=((1, 1), (1, 1), 0)),
    _Layer(192, (3, 3), padding=1, pool=((3, 3), (1, 2), 0)),
    _Layer(384, (3, 3), padding=1),
    _Layer(256, (3, 3), padding=1),
    _Layer(256, (3, 3), padding=1, pool=((3, 3), (2, 2), 0)),
    _Layer(_WIDTH, (5, 4)),
)
_SAME = (0, 1, 1)
_HALF = (1, 2, 2)
_POOL = (1, 3, 3)
_LIPS = (
    _Layer(96, (5, 7, 7), _HALF, pool=(_POOL, _HALF, 0)),
    _Layer(256, (1, 5, 5), _HALF, _SAME, pool=(_POOL, _HALF, _SAME)),
    _Layer(256, (1, 3, 3), padding=_SAME),
    _Layer(256, (1, 3, 3), padding=_SAME),
    _Layer(256, (1, 3, 3), padding=_SAME, pool=(_POOL, _HALF, 0)),
    _Layer(_WIDTH, (1, 6, 6)),
)


class SyncNet(nn.Module):
    """Both halves; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _plane_chain(_SOUND)
        self.netfcaud = _head()
        self.netcnnlip = _volume_chain(_LIPS)
        self.netfclip = _head()

    def sound(self, sound_N1CT: Tensor) -> Tensor:
        """Embed as [n, 1024]."""
        embedding: Tensor = self.netfcaud(self.netcnnaud(sound_N1CT).flatten(1))
        return embedding

    def lips(self, pictures_NCTHW: Tensor) -> Tensor:
        """Embed as [n, 1024]."""
        embedding: Tensor = self.netfclip(self.netcnnlip(pictures_NCTHW).flatten(1))
        return embedding


def _plane_chain(layers: tuple[_Layer, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    width = 1
    for layer in layers:
        kernel, stride, padding = layer.kernel, layer.stride, layer.padding
        parts += [nn.Conv2d(width, layer.channels, kernel, stride, padding)]  # type: ignore[arg-type]
        parts += [nn.BatchNorm2d(layer.channels), nn.ReLU()]
        parts += [nn.MaxPool2d(*layer.pool)] if layer.pool else []
        width = layer.channels
    return nn.Sequential(*parts)


def _volume_chain(layers: tuple[_Layer, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    width = 3
    for layer in layers:
        kernel, stride, padding = layer.kernel, layer.stride, layer.padding
        parts += [nn.Conv3d(width, layer.channels, kernel, stride, padding)]  # type: ignore[arg-type]
        parts += [nn.BatchNorm3d(layer.channels), nn.ReLU()]
        parts += [nn.MaxPool3d(*layer.pool)] if layer.pool else []
        width = layer.channels
    return nn.Sequential(*parts)


def _head() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(_WIDTH, _WIDTH),
        nn.BatchNorm1d(_WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _EMBEDDING),
    )


def load_syncnet(path: Path) -> SyncNet:
    """Load the network with the weights of a published file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"--syncnet: expected syncnet_v2.model, found nothing at {path}")
    source = PthSource(path)
    with without_memory():
        network = SyncNet()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stored = {name: info.shape for name, info in source.infos.items()}
    for name in wanted:
        if name.endswith(_COUNTER):
            stored.setdefault(name, ())
    if wanted != stored:
        odd = sorted(name for name in wanted | stored if wanted.get(name) != stored.get(name))
        raise CheckpointError(
            f"--syncnet: expected the {len(wanted)} tensors of syncnet_v2.model, got another model "
            f"in {path} ({odd[0]} is {stored.get(odd[0], 'missing')}); use the published file"
        )
    state = {name: source.read(name) for name in source.infos}
    state |= {name: torch.zeros((), dtype=torch.long) for name in wanted if name not in state}
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False)
