"""CUDA graphs, on a runtime that only notes what is asked of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lipcast.memory.graphs import CaptureError, CudaGraphs


class Runtime:
    """What a CUDA runtime is asked, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current = self.default = Stream(self, "default")
        self.refuses_end = False
        for name, found in {
            "Stream": lambda *_: Stream(self, "side"),
            "CUDAGraph": lambda: Graph(self),
            "current_stream": lambda *_: self.current,
            "stream": self.on,
            "graph_pool_handle": lambda: (0, 1),
            "empty_cache": lambda: self.calls.append("empty_cache"),
        }.items():
            patch.setattr(torch.cuda, name, found)
        patch.setattr(
            torch._C,
            "_cuda_endAllocateToPool",
            lambda *_: self.calls.append("leave the pool"),
            raising=False,
        )

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class Stream:
    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime, self.name = runtime, name

    def wait_stream(self, other: Stream) -> None:
        self.runtime.calls.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.runtime.calls.append(f"{self.name} is waited for")


class Graph:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def _note(self, call: str) -> None:
        self.runtime.calls.append(f"{call} on {self.runtime.current.name}")

    def capture_begin(self, *, pool: Any, capture_error_mode: str) -> None:
        assert pool == (0, 1) and capture_error_mode == "thread_local"
        self._note("begin")

    def capture_end(self) -> None:
        self._note("end")
        if self.runtime.refuses_end:
            raise RuntimeError("CUDA error: capture invalidated\nmore")

    def replay(self) -> None:
        self._note("replay")

    def reset(self) -> None:
        self._note("reset")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    return Runtime(monkeypatch)


def test_work_is_recorded_aside_and_replayed_in_place(runtime: Runtime) -> None:
    """On another stream, which follows the computation so far and is followed by what comes."""
    graphs = CudaGraphs(torch.device("cpu"))

    def work() -> list[torch.Tensor]:
        assert runtime.current.name == "side" and not gc.isenabled()
        return [torch.ones(1)]

    recorded = graphs.record(work)
    assert gc.isenabled()
    assert runtime.calls == [
        "side waits for default", "begin on side", "end on side", "default waits for side",
    ]  # fmt: skip
    assert recorded.replay() is recorded.replay()
    graphs.record(work)
    runtime.calls.clear()
    graphs.release()
    graphs.release()
    assert runtime.calls == [
        "default is waited for", "reset on default", "reset on default", "empty_cache",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["work", "end", "both"])
def test_a_recording_that_fails_leaves_the_pool(runtime: Runtime, where: str) -> None:
    graphs = CudaGraphs(torch.device("cpu"))
    runtime.refuses_end = where != "work"

    def work() -> list[torch.Tensor]:
        if where != "end":
            raise torch.OutOfMemoryError("no memory\nat all")
        return []

    with pytest.raises(CaptureError) as caught:
        graphs.record(work)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(
        "invalidated" if where == "end" else "no memory"
    )
    assert runtime.calls[-2:] == ["end on side", "leave the pool"]
    assert gc.isenabled() and runtime.current.name == "default"
    graphs.release()
    assert runtime.calls[-1] == "leave the pool", "nothing is held"
