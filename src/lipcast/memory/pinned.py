"""Page-locked host memory, which a GPU copies to and from without help of the processor.

PyTorch's own pinned allocator rounds every request up to a power of two: 350 MB become 512. Here pages
come from an anonymous mapping of the right size and are registered with the driver.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_ALREADY_GONE = 4
"""cudaErrorCudartUnloading: the driver has let go of everything itself."""


class PinnedMaker:
    """Registered pages. Needs a CUDA device."""

    def __init__(self) -> None:
        self._runtime = torch.cuda.cudart()

    def make(self, num_bytes: int) -> Tensor:
        pages = mmap.mmap(-1, max(1, num_bytes))
        buffer = torch.frombuffer(pages, dtype=torch.uint8, count=max(1, num_bytes))[:num_bytes]
        code = int(self._runtime.cudaHostRegister(buffer.data_ptr(), max(1, num_bytes), 0))
        if code:
            raise torch.OutOfMemoryError(
                f"the driver refused to pin {num_bytes} bytes of host memory (CUDA error {code}); "
                "give less with --ram, or raise the limit of locked memory (ulimit -l)"
            )
        return buffer

    def drop(self, buffer: Tensor) -> None:
        code = int(self._runtime.cudaHostUnregister(buffer.data_ptr()))
        assert code in {0, _ALREADY_GONE}, f"unpinning failed with CUDA error {code}"
