"""Errors that say that another rank is gone, and those that do not."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from lipcast.errors import MemoryBudgetError
from lipcast.parallel.lost_peer import is_lost_peer
from lipcast.parallel.rank import _failure

_GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
LOST = (
    # As torch 2.13 words them.
    RuntimeError(
        f"{_GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:58513. This is typically caused "
        "by a remote worker crashing. Check the logs of the remote worker before reporting an error."
    ),
    RuntimeError(f"{_GLOO}pair.cc:547] Read error [127.0.0.1]:24: Connection reset by peer"),
    RuntimeError(f"{_GLOO}pair.cc:587] writev [127.0.0.1]:5814: Broken pipe"),
    RuntimeError(
        f"{_GLOO}unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete"
    ),
    RuntimeError(
        f"{_GLOO}unbound_buffer.cc:136] Timed out waiting 1800000ms for send operation to complete"
    ),
    RuntimeError("Gloo connectFullMesh failed with [...] no error"),
    dist.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:1200, remote process exited or there was a network "
        "error, NCCL version 2.28.9\nncclRemoteError: A call failed possibly due to a network error"
    ),
    dist.DistNetworkError("The client socket has failed to connect to any network address"),
    dist.DistStoreError("wait timeout after 300000ms, keys: /cuda//0"),
    ConnectionResetError(104, "Connection reset by peer"),
)
OTHER = (
    ValueError("Connection closed by peer"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)"),
    RuntimeError("expected gloo or NCCL, got mpi"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    FileNotFoundError(2, "No such file or directory"),
)
NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    dist.DistBackendError("ncclUnhandledCudaError: Call to CUDA function failed. out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


@pytest.mark.parametrize("error", LOST)
def test_a_lost_peer_is_recognised(error: Exception) -> None:
    assert is_lost_peer(error)
    assert _failure(error).cause == "lost peer"


@pytest.mark.parametrize("error", OTHER)
def test_other_errors_are_the_ranks_own(error: Exception) -> None:
    assert not is_lost_peer(error)
    assert _failure(error).cause == "error"


@pytest.mark.parametrize("error", NO_MEMORY)
def test_memory_comes_before_the_network(error: Exception) -> None:
    assert not is_lost_peer(error)
    assert _failure(error).cause == "out of memory"


def test_a_refusal_of_the_planner_keeps_its_name() -> None:
    failure = _failure(MemoryBudgetError("the video needs 3 GB\nmore"))
    assert (failure.kind, failure.reason) == ("MemoryBudgetError", "the video needs 3 GB")
