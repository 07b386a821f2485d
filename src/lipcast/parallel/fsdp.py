"""Sharded weights: every rank keeps a part of every layer, and gathers a layer before it is used.

FSDP2 (`fully_shard`) for inference. Parameters are gathered by use: those of every tick, of every block, of
every prompt. The next layer is gathered while one is computed with, and the one before is resharded, so at
most two are whole at a time. All ranks of the mesh must gather the same layers in the same order: a rank that
has nothing to compute calls `join_collectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lipcast.memory.layer_params import FlatParams, ParamsKey, layer_params, root_params
from lipcast.models.dit import DiT
from lipcast.planning.tensors import WeightUse
from lipcast.weights.load import load_into
from lipcast.weights.source import TensorSource


class _Gathered(nn.Module):
    """Holds the modules whose parameters are gathered together; computes nothing."""

    def __init__(self, owners: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.owners = nn.ModuleList(owners.values())

    def forward(self) -> None:
        """Do nothing; FSDP initialises itself when its root module is called."""


class ShardedWeights:
    """The weights of one model, sharded over the ranks of a group. State: the layers that are whole."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, *, dtype: torch.dtype, offload: bool
    ) -> None:
        """With `offload` the shards are in host memory, and are copied to the device to be gathered."""
        self._mesh = DeviceMesh.from_group(group, device.type)
        self._device, self._dtype = device, dtype
        self._policy: OffloadPolicy = (
            CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
        )
        self._home = torch.device("cpu") if offload else device
        self._gathered: dict[ParamsKey, FSDPModule] = {}
        self._order: dict[WeightUse, list[int]] = {}
        self._whole: list[ParamsKey] = []
        """Layers that are gathered or being gathered: the one in use, then the next."""

    def load(self, model: DiT, source: TensorSource) -> None:
        """Fill a model that was built without memory, with one whole tensor in memory at a time."""
        sharded: dict[str, DTensor] = {}

        def place(filled: nn.Module) -> dict[str, Tensor | None]:
            assert filled is model
            root = root_params(model, self._dtype)
            views = root.layout.views(
                torch.empty(root.num_bytes, dtype=torch.uint8, device=self._device)
            )
            root.attach(views)
            self._shard(model)
            sharded.update(_shards(model))
            return {**views, **dict.fromkeys(sharded)}

        load_into(model, source, dtype=self._dtype, device=self._device, place=place)
        with torch.no_grad():
            for name, shard in sharded.items():
                _fill(shard, source.read(name))
        model.ensure_resident = self.ensure_resident

    # FSDP's buffers were made in inference mode, and cannot be written outside it.
    @torch.inference_mode()
    def ensure_resident(self, use: WeightUse, layer: int) -> None:
        """Gather a layer for this use, and begin to gather the next of the same use."""
        if (use, layer) not in self._gathered:
            return
        wanted: list[ParamsKey] = [(use, layer)]
        later = [other for other in self._order[use] if other > layer]
        if later:
            wanted.append((use, later[0]))
        for key in [key for key in self._whole if key not in wanted]:
            self._gathered[key].reshard()
            self._whole.remove(key)
        for key in wanted:
            if key not in self._whole:
                self._gathered[key].unshard(async_op=True)
                self._whole.append(key)
        self._gathered[wanted[0]].unshard()  # waits for it

    def join_collectives(self, use: WeightUse) -> None:
        """Gather every layer of this use as a pass would: the other ranks need the shards of this one."""
        for layer in self._order.get(use, ()):
            self.ensure_resident(use, layer)

    def _shard(self, model: DiT) -> None:
        by_use = layer_params(model, self._dtype)
        for params in by_use.values():
            # To the meta device, in the dtype that they will have.
            params.detach()
        everything = nn.ModuleList()
        parameters = {name: p for name, p in model.named_parameters() if _is_in(by_use, name)}
        for key, params in by_use.items():
            own = {id(parameters[name]) for name in params.places}
            others = {p for p in parameters.values() if id(p) not in own}
            holder = _Gathered(_owners(model, params))
            fully_shard(
                holder,
                mesh=self._mesh,
                reshard_after_forward=False,
                offload_policy=self._policy,
                ignored_params=others,
            )
            for name in params.places:
                _allocate(model, name, self._home)
            self._gathered[key] = cast(FSDPModule, holder)
            self._order.setdefault(key[0], []).append(key[1])
            everything.append(holder)
        self._start(everything)

    def _start(self, holders: nn.ModuleList) -> None:
        """Call a root module once, so that FSDP makes its streams for all layers."""
        root = _Gathered({str(i): holder for i, holder in enumerate(holders)})
        fully_shard(root, mesh=self._mesh, reshard_after_forward=False)
        root()


def _owners(model: DiT, params: FlatParams) -> dict[str, nn.Module]:
    """Return the modules that own these parameters."""
    names = {name.rpartition(".")[0] for name in params.places}
    return {name: model.get_submodule(name) for name in sorted(names)}


def _is_in(by_use: Mapping[ParamsKey, FlatParams], name: str) -> bool:
    return any(name in params.places for params in by_use.values())


def _shards(model: DiT) -> dict[str, DTensor]:
    return {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}


def _allocate(model: DiT, name: str, device: torch.device) -> None:
    """Allocate this rank's part of a parameter that was sharded on the meta device."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    shard = getattr(module, leaf)
    assert isinstance(shard, DTensor)
    empty = torch.empty_like(shard, device=device)
    setattr(module, leaf, nn.Parameter(empty, requires_grad=False))


def _fill(shard: DTensor, whole: Tensor) -> None:
    """Copy this rank's rows of a parameter."""
    rank, size = shard.device_mesh.get_local_rank(), shard.device_mesh.size()
    local = cast(DTensor, shard.detach()).to_local()
    # FSDP splits the first axis as torch.chunk does; the last ranks may have fewer rows, or none.
    rows = -(-whole.shape[0] // size)
    local.copy_(whole[rank * rows : (rank + 1) * rows])
