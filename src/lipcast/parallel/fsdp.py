"""Weights in shards: every rank keeps a part of every layer, and gathers a layer when it is needed.

FSDP2 (`fully_shard`) for inference. What is used together is gathered together: every tick, once per block,
once per prompt. While one layer is computed with, the next is gathered; the one before is let go, so at most
two are whole at a time. All ranks of the mesh must ask for the same layers in the same order: who has nothing
to compute keeps pace with `join_collectives`.
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
    """The modules whose parameters are gathered together. It computes nothing itself."""

    def __init__(self, owners: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.owners = nn.ModuleList(owners.values())

    def forward(self) -> None:
        """Nothing; FSDP prepares itself when its outermost module is called."""


class ShardedWeights:
    """The weights of one model over the ranks of a group. State: what is whole now."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, *, dtype: torch.dtype, offload: bool
    ) -> None:
        """`offload`: this rank's shards are in host memory, and pass through the device."""
        self._mesh = DeviceMesh.from_group(group, device.type)
        self._device, self._dtype = device, dtype
        self._policy: OffloadPolicy = (
            CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
        )
        self._home = torch.device("cpu") if offload else device
        self._gathered: dict[ParamsKey, FSDPModule] = {}
        self._order: dict[WeightUse, list[int]] = {}
        self._whole: list[ParamsKey] = []
        """What is gathered or on its way: the pack in use, then the next."""

    def load(self, model: DiT, source: TensorSource) -> None:
        """Fill a model that was built without memory; one tensor at a time is whole meanwhile."""
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

    # What FSDP gathers into was made in this mode, and can be written in no other.
    @torch.inference_mode()
    def ensure_resident(self, use: WeightUse, layer: int) -> None:
        """Make the layer whole for this use; the next of the same use is on its way."""
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
        """One pass without computing: the other ranks need this one's shards."""
        for layer in self._order.get(use, ()):
            self.ensure_resident(use, layer)

    def _shard(self, model: DiT) -> None:
        packs = layer_params(model, self._dtype)
        for pack in packs.values():
            # On the meta device, in the dtype they shall have.
            pack.detach()
        everything = nn.ModuleList()
        parameters = {name: p for name, p in model.named_parameters() if _is_in(packs, name)}
        for key, pack in packs.items():
            own = {id(parameters[name]) for name in pack.places}
            others = {p for p in parameters.values() if id(p) not in own}
            holder = _Gathered(_owners(model, pack))
            fully_shard(
                holder,
                mesh=self._mesh,
                reshard_after_forward=False,
                offload_policy=self._policy,
                ignored_params=others,
            )
            for name in pack.places:
                _give_memory(model, name, self._home)
            self._gathered[key] = cast(FSDPModule, holder)
            self._order.setdefault(key[0], []).append(key[1])
            everything.append(holder)
        self._start(everything)

    def _start(self, holders: nn.ModuleList) -> None:
        """Let FSDP make its streams, once for all layers: it does so when its root is called."""
        root = _Gathered({str(i): holder for i, holder in enumerate(holders)})
        fully_shard(root, mesh=self._mesh, reshard_after_forward=False)
        root()


def _owners(model: DiT, pack: FlatParams) -> dict[str, nn.Module]:
    """The modules that keep the parameters of a pack."""
    names = {name.rpartition(".")[0] for name in pack.places}
    return {name: model.get_submodule(name) for name in sorted(names)}


def _is_in(packs: Mapping[ParamsKey, FlatParams], name: str) -> bool:
    return any(name in pack.places for pack in packs.values())


def _shards(model: DiT) -> dict[str, DTensor]:
    return {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}


def _give_memory(model: DiT, name: str, device: torch.device) -> None:
    """Memory for this rank's part of a parameter that was sharded without any."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    shard = getattr(module, leaf)
    assert isinstance(shard, DTensor)
    empty = torch.empty_like(shard, device=device)
    setattr(module, leaf, nn.Parameter(empty, requires_grad=False))


def _fill(shard: DTensor, whole: Tensor) -> None:
    """Keep this rank's rows of a parameter."""
    rank, size = shard.device_mesh.get_local_rank(), shard.device_mesh.size()
    local = cast(DTensor, shard.detach()).to_local()
    # FSDP cuts along the first axis as torch.chunk does; the last ranks may have less or none.
    rows = -(-whole.shape[0] // size)
    local.copy_(whole[rank * rows : (rank + 1) * rows])
