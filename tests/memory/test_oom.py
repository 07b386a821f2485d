"""Every text that means "out of memory" is recognised, and no other."""

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest
import torch

from lipcast.errors import LipcastError, MemoryBudgetError, RankError
from lipcast.memory.oom import is_out_of_memory

_ASYNC = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api/"
    "group__CUDART__TYPES.html for more information.\nCUDA kernel errors might be asynchronously "
    "reported at some other API call, so the stacktrace below might be incorrect.\nFor debugging "
    "consider passing CUDA_LAUNCH_BLOCKING=1"
)

MEMORY_ERRORS: tuple[BaseException, ...] = (
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 314.00 MiB. GPU 0 has a total capacity of 7.63 GiB"
    ),
    torch.OutOfMemoryError("the driver refused to pin 1.00 GiB of host memory"),
    torch.AcceleratorError("CUDA error: out of memory" + _ASYNC),
    RuntimeError("CUDA error: out of memory" + _ASYNC),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("cuModuleLoadData failed: CUDA_ERROR_OUT_OF_MEMORY"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, "
        "computeDesc.descriptor(), alpha_ptr, mat1_ptr, Adesc.descriptor())`"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation after trying 6"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError(
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED at "
        '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1090, please report a bug to PyTorch.'
    ),
    RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nLast error:\n"
        "Failed to CUDA calloc async 608 bytes"
    ),
    RuntimeError("ncclUnhandledCudaError: Last error:\nCuda failure 2 'out of memory'"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)

OTHER_ERRORS: tuple[BaseException, ...] = (
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + _ASYNC[-80:]),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: invalid argument"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle)`"),
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul( ltHandle)`"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx( handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448."),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error, out of shared memory"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    RuntimeError('"addmm_impl_cpu_" not implemented for Float8_e4m3fn'),
    ValueError("out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryBudgetError("out of memory at block 3; no fallback left"),
    RankError("rank 1 failed: out of memory"),
    LipcastError("out of memory"),
    KeyboardInterrupt(),
)


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: str(error)[:60])
def test_refused_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER_ERRORS, ids=lambda error: str(error)[:60])
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
        lambda: mmap.mmap(-1, 2**50),
    ],
    ids=["torch", "numpy", "mmap"],
)
def test_what_this_machine_raises_is_recognised(allocate: object) -> None:
    assert callable(allocate)
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
