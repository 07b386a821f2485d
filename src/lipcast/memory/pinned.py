"""Page-locked host memory, which a GPU reads and writes without help of the processor.

PyTorch's own pinned allocator rounds every request up to a power of two: 350 MB become 512. Here pages
come from an anonymous mapping of the right size and are registered with the driver, for all GPUs.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from lipcast.config.units import format_bytes

_PORTABLE = 1
"""cudaHostRegisterPortable: the pages are pinned for every GPU of the process."""
_UNLOADING = 4
"""cudaErrorCudartUnloading: the driver has released everything by itself."""


class PinnedMaker:
    """Allocates registered pages. Needs a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Pages are registered from the context of `device`."""
        self._device = device
        self._runtime = torch.cuda.cudart()
        self._scratch = torch.zeros(1, device=device)
        """Something to launch a kernel on when there is no memory left."""
        self._pages: dict[int, mmap.mmap] = {}
        """Registered pages, by address."""
        finalizer = weakref.finalize(self, _unregister_all, self._runtime, self._pages)
        finalizer.atexit = False  # the end of the process unregisters everything by itself

    def make(self, num_bytes: int) -> Tensor:
        size = max(1, num_bytes)
        pages = mmap.mmap(-1, size)
        buffer = torch.frombuffer(pages, dtype=torch.uint8, count=size)
        address = buffer.data_ptr()
        with torch.cuda.device(self._device):
            code = int(self._runtime.cudaHostRegister(address, size, _PORTABLE))
            if code:
                self._clear_last_error()
                raise torch.OutOfMemoryError(
                    f"the CUDA driver refused to pin {format_bytes(size)} of host memory (CUDA error "
                    f"{code}). Lower --ram, or raise the limit of locked memory (ulimit -l)."
                )
        self._pages[address] = pages
        return buffer[:num_bytes]

    def drop(self, buffer: Tensor) -> None:
        address = buffer.untyped_storage().data_ptr()
        _unregister(self._runtime, address)
        del self._pages[address]

    def _clear_last_error(self) -> None:
        """Keep the refusal from being reported by the next kernel launch of the caller.

        The runtime remembers the error until somebody asks for it, which PyTorch does after every
        launch. If the GPU itself is in error, the second launch reports that.
        """
        with suppress(RuntimeError):
            self._scratch.add_(1)
        self._scratch.add_(1)


def _unregister_all(runtime: Any, pages: dict[int, mmap.mmap]) -> None:
    """Unregister the pages of a maker that is gone, before they are unmapped."""
    while pages:
        address, _ = pages.popitem()
        _unregister(runtime, address)


def _unregister(runtime: Any, address: int) -> None:
    code = int(runtime.cudaHostUnregister(address))
    assert code in {0, _UNLOADING}, f"unpinning host memory failed with CUDA error {code}"
