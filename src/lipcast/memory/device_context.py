"""A device and its host: one arena of memory for each, and the link between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from lipcast.memory.arena import Arena, DeviceMaker
from lipcast.memory.copier import Copier, CudaCopier, DirectCopier
from lipcast.memory.device import decode_stream, with_index
from lipcast.memory.layer_buffers import BufferAllocator
from lipcast.memory.pinned import PinnedMaker


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """Device and its memory. On a CPU, device memory and host memory are of one kind."""

    device: torch.device
    vram: Arena
    ram: Arena
    copier: Copier
    decode_stream: torch.cuda.Stream | None = None
    """Stream on which all sessions of a GPU decode, one after the other."""

    @classmethod
    def of(
        cls, device: torch.device, *, vram_bytes: int | None = None, ram_bytes: int | None = None
    ) -> Self:
        """Return the arenas of `device`, bounded by these budgets (None: no bound)."""
        device = with_index(device)
        is_cuda = device.type == "cuda"
        on_device = DeviceMaker(device)
        return cls(
            device=device,
            vram=Arena(f"{device} memory", on_device, budget_bytes=vram_bytes),
            ram=Arena(
                "pinned host memory" if is_cuda else "host memory",
                PinnedMaker(device) if is_cuda else on_device,
                budget_bytes=ram_bytes,
            ),
            copier=CudaCopier(device) if is_cuda else DirectCopier(),
            decode_stream=decode_stream(device) if is_cuda else None,
        )

    def allocator(self, device_part: str, host_part: str) -> BufferAllocator:
        """Return an allocator whose buffers are counted under these names."""
        return BufferAllocator(self.vram, self.ram, self.copier, device_part, host_part)
