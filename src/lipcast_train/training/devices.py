"""Where a phase is trained: on one device, or on the devices of the processes that torchrun started.

With several, FSDP2 shards parameters, moving average and the optimiser's state; every process computes
its share of each batch, and gradients are averaged. The losses are those of one device, within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lipcast.env import launched

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Share:
    """The part of every batch that one process computes: every `count`-th sample from `rank` on."""

    rank: int = 0
    count: int = 1

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        """Return the samples of this process; a batch is a whole number of samples a process."""
        assert len(items) % self.count == 0, "the batch is not divisible by the number of processes"
        return list(items[self.rank :: self.count])


@dataclass(frozen=True, slots=True)
class Devices:
    """The device of this process, and those beside it."""

    device: torch.device
    share: Share = Share()
    mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.share.rank == 0

    def shard(self, module: nn.Module) -> None:
        """Share the parameters of a module out; its `forward` gathers them."""
        if self.mesh is not None:
            fully_shard(module, mesh=self.mesh, reshard_after_forward=False)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a number over all processes."""
        mean = value.detach().float()
        if self.mesh is not None:
            mean = mean.clone()
            dist.all_reduce(mean)
            mean /= self.share.count
        return float(mean)

    def any(self, value: bool) -> bool:
        """Return whether it is so in any process."""
        if self.mesh is None:
            return value
        return self.mean(torch.tensor(float(value), device=self.device)) > 0


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor where `like` is, shared out in the same way."""
    tensor = tensor.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor.clone()


@contextmanager
def open_devices(device: torch.device) -> Iterator[Devices]:
    """Yield the devices of this process and of those that a launcher started with it."""
    found = launched()
    if found is None:
        yield Devices(device)
        return
    is_cuda = device.type == "cuda"
    if is_cuda:
        device = torch.device("cuda", found.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        mesh = init_device_mesh(device.type, (found.num_processes,))
        yield Devices(device, Share(found.rank, found.num_processes), mesh)
    finally:
        dist.destroy_process_group()
