"""Record what a GPU is asked to launch, and launch all of it again with one call.

Input: work on tensors that stay where they are. Output: a `Recording`. A replay reads and writes the same
memory as the recorded work did; numbers that Python computed stay what they were. Recordings of one backend
share their working memory, so they run one after the other, and outputs last until the next replay.
`RunAgain` is the counterpart that records nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[], Sequence[Tensor]]


class CaptureError(Exception):
    """The work cannot be recorded; nothing was computed, and it may be done without a recording."""


class Recording(Protocol):
    """Recorded work."""

    def replay(self) -> Sequence[Tensor]:
        """Do the work once more; return its outputs, which the next replay overwrites."""


class GraphBackend(Protocol):
    """Records work."""

    def record(self, work: Work) -> Recording:
        """Record the work without doing it. Raises CaptureError."""

    def release(self) -> None:
        """Free all recordings and their memory. Further calls do nothing; more may be recorded."""


class RunAgain:
    """Does the work itself at every replay."""

    def record(self, work: Work) -> Recording:
        return _Work(work)

    def release(self) -> None:
        """Do nothing: nothing is held."""


@dataclass(frozen=True, slots=True)
class _Work:
    work: Work

    def replay(self) -> Sequence[Tensor]:
        return self.work()


@dataclass(frozen=True, slots=True)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    outputs: Sequence[Tensor]

    def replay(self) -> Sequence[Tensor]:
        self.graph.replay()
        return self.outputs


class CudaGraphs:
    """CUDA graphs of one session, with one pool of memory for all of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Work) -> Recording:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        if self._pool is None:
            self._open()
        self._stream.wait_stream(current)
        try:
            with _no_collection(), torch.cuda.stream(self._stream):
                outputs = self._capture(graph, work)
        except Exception as error:  # whatever the work, the driver or the allocator raises
            self._end_of_failure()
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise CaptureError(text) from error
        current.wait_stream(self._stream)
        self._graphs.append(graph)
        return _CudaRecording(graph, outputs)

    def release(self) -> None:
        graphs, self._graphs, self._pool = self._graphs, [], None
        if not graphs:
            return
        torch.cuda.current_stream(self._device).synchronize()
        for graph in graphs:
            graph.reset()
        # The pool's memory is of no use to anything else until it is given back.
        torch.cuda.empty_cache()

    def _open(self) -> None:
        """Make the pool, and outside of it what cuBLAS keeps for a stream that multiplies."""
        self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            ones = torch.ones(16, 16, dtype=torch.bfloat16, device=self._device)
            torch.mm(ones, ones)

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work) -> Sequence[Tensor]:
        # Other threads may take memory meanwhile: only what this one does can spoil the recording.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            outputs = work()
        except BaseException:
            with suppress(RuntimeError):  # says once more that the recording has failed
                graph.capture_end()
            raise
        graph.capture_end()
        return outputs

    def _end_of_failure(self) -> None:
        """Let the allocator leave the pool, which a recording that failed to end does not do."""
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing CUDA objects in the middle of a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
