"""Recognise out-of-memory errors, whichever library reports them.

PyTorch's allocator raises `torch.OutOfMemoryError`. cuBLAS, cuDNN, the CUDA driver, Triton and NCCL take
memory beside the allocator, and their refusals arrive as plain `RuntimeError`s that only their text tells
apart; so do those of PyTorch's own host allocator. Retrying under a smaller plan helps in all of these cases.
"""

from __future__ import annotations

import errno
import re

import torch

_PATTERNS = (
    # CUDA runtime and driver (kernel launch, module loading, expandable segments), Triton, NCCL, HIP.
    r"\bout of memory\b",
    r"\bCUDA_ERROR_OUT_OF_MEMORY\b",
    # cuBLAS, cuSOLVER, cuSPARSE and cuDNN; cuDNN 9 says which kind of memory.
    r"_STATUS_ALLOC_FAILED\b",
    r"_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED\b",
    # Creating a handle on a full GPU reports the failed allocation as a failed initialisation.
    r"CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(Lt)?Create\b",
    r"\bCUDNN_STATUS_NOT_INITIALIZED\b",
    # PyTorch tries one convolution engine after the other and does not say that memory was short for all.
    r"\bunable to find an engine to execute this computation\b",
    r"\bUnable to find a valid cuDNN algorithm to run convolution\b",
    # The CUDA allocator fails to describe an out-of-memory error where NVML is not available.
    r"\bNVML_SUCCESS == .*CUDACachingAllocator\.cpp",
    # NCCL's own buffers.
    r"\bFailed to CUDA (host )?(c|m)alloc\b",
    # Host memory.
    r"DefaultCPUAllocator: (not enough|can't allocate) memory",
)
_OUT_OF_MEMORY = re.compile("|".join(_PATTERNS), re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that device or host memory could not be allocated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
