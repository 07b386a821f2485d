"""Tensors of a transformer, grouped by layer and use.

Input: a DiT built without memory. Outputs: one `FlatParams` per layer and use (every tick, once per block,
once per prompt), and one for everything outside the layers. Names are the checkpoint's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcast.memory.flat_params import ParamsLayout
from lipcast.models.dit import DiT
from lipcast.planning.tensors import WEIGHT_USES, WeightUse, weight_use

ParamsKey = tuple[WeightUse, int]
"""(use, layer)."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The module that has a tensor, and its name there."""

    owner: nn.Module
    leaf: str
    is_parameter: bool


@dataclass(frozen=True, slots=True, eq=False)
class FlatParams:
    """Tensors that lie in one buffer, and their places in the module."""

    layout: ParamsLayout
    places: Mapping[str, _Place]

    @property
    def num_bytes(self) -> int:
        return self.layout.num_bytes

    def attach(self, views: Mapping[str, Tensor]) -> None:
        """Make `views`, by name, the tensors of the module."""
        for name, place in self.places.items():
            if place.is_parameter:
                parameter = nn.Parameter(views[name], requires_grad=False)
                place.owner._parameters[place.leaf] = parameter
            else:
                place.owner._buffers[place.leaf] = views[name]

    def detach(self) -> None:
        """Leave the module with shapes only, so that using it without `attach` is an error."""
        self.attach(
            self.layout.views(torch.empty(self.num_bytes, dtype=torch.uint8, device="meta"))
        )


def layer_params(model: DiT, dtype: torch.dtype) -> dict[ParamsKey, FlatParams]:
    """Return the groups of all layers, by use and then by layer; parameters are stored in `dtype`."""
    groups: dict[ParamsKey, list[str]] = {}
    for name in _stored(model):
        layer = _layer_of(model, name)
        if layer is not None:
            groups.setdefault((weight_use(name), layer), []).append(name)
    order = sorted(groups, key=lambda key: (WEIGHT_USES.index(key[0]), key[1]))
    return {key: _pack(model, groups[key], dtype) for key in order}


def root_params(model: DiT, dtype: torch.dtype) -> FlatParams:
    """Return the group of everything outside the layers."""
    return _pack(model, [n for n in _stored(model) if _layer_of(model, n) is None], dtype)


def _stored(model: DiT) -> Iterator[str]:
    return iter(model.state_dict(keep_vars=True))


def _layer_of(model: DiT, name: str) -> int | None:
    """Return the layer of a tensor; an injector belongs to the layer that it follows."""
    first, *rest = name.split(".")
    if first == "blocks":
        return int(rest[0])
    if first == "audio_injector":
        return model.config.audio_inject_layers[int(rest[1])]
    return None


def _pack(model: DiT, names: Iterable[str], dtype: torch.dtype) -> FlatParams:
    places = {name: _place(model, name) for name in names}
    tensors = model.state_dict(keep_vars=True)
    described = (
        (name, tensors[name].shape, dtype if place.is_parameter else tensors[name].dtype)
        for name, place in places.items()
    )
    return FlatParams(ParamsLayout.of(described, group=_multiplied_together), places)


_QUERIES_KEYS_VALUES = re.compile(r"(\.self_attn)\.[qkv]\.")


def _multiplied_together(name: str) -> str:
    """Return what is equal for the parts of weights that one product can multiply with, side by side."""
    return _QUERIES_KEYS_VALUES.sub(r"\1.qkv.", name)


def _place(model: DiT, name: str) -> _Place:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    return _Place(owner, leaf, is_parameter=leaf in owner._parameters)
