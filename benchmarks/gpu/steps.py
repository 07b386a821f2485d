"""Time the passes of the transformer while videos are made through the public door."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lipcast
from gpu.report import Settings
from gpu.videos import Made, make_video
from lipcast.engine.executor import LaneExecutor
from lipcast.models.dit import DiT


@dataclass
class StepTimes:
    """Milliseconds of every pass, on the device and of the host; filled while videos are made."""

    lanes: list[int] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    finite: bool = True

    def steady(self, kind: str, *, num_lanes: int) -> float:
        """The median of the last half of the passes with so many lanes."""
        values: list[float] = getattr(self, kind)
        chosen = [ms for ms, lanes in zip(values, self.lanes, strict=True) if lanes == num_lanes]
        return round(median(chosen[len(chosen) // 2 :]), 3)


@contextmanager
def timed_steps(settings: Settings) -> Iterator[StepTimes]:
    """Time every pass inside; device times are there at the end."""
    times = StepTimes()
    events: list[tuple[Any, Any]] = []
    forward = DiT.forward

    def timed(self: DiT, lanes: Any) -> Any:
        begin = time.perf_counter()
        if settings.is_cuda:
            events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
            events[-1][0].record()
        result = forward(self, lanes)
        if settings.is_cuda:
            events[-1][1].record()
        times.lanes.append(len(lanes))
        times.host_ms.append(1e3 * (time.perf_counter() - begin))
        last.append(result[0])
        del last[:-1]
        return result

    last: list[Tensor] = []
    with mock.patch.object(DiT, "forward", timed):
        yield times
    times.finite = all(bool(torch.isfinite(tensor).all()) for tensor in last)
    if settings.is_cuda:
        torch.cuda.synchronize()
        times.device_ms = [begin.elapsed_time(end) for begin, end in events]
    else:
        times.device_ms = list(times.host_ms)


@dataclass
class TickTimes:
    """Milliseconds of every tick of a session, on the device and of the host."""

    host_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)

    def steady(self, kind: str) -> float:
        """The median of the last quarter."""
        values: list[float] = getattr(self, kind)
        return round(median(values[-max(1, len(values) // 4) :]), 3)


@contextmanager
def timed_ticks() -> Iterator[TickTimes]:
    """Time every tick inside, recorded or not. Needs a GPU."""
    times, events, run = TickTimes(), list[tuple[Any, Any]](), LaneExecutor.run

    def timed(self: LaneExecutor, tick: Any) -> Any:
        events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
        begin_s = time.perf_counter()
        events[-1][0].record()
        found = run(self, tick)
        events[-1][1].record()
        times.host_ms.append(1e3 * (time.perf_counter() - begin_s))
        return found

    with mock.patch.object(LaneExecutor, "run", timed):
        yield times
    torch.cuda.synchronize()
    times.device_ms = [begin.elapsed_time(end) for begin, end in events]


def host_launches(work: Callable[[], object]) -> int:
    """How often the host launches something."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    return sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)


@contextmanager
def without_decoding(model: lipcast.Lipcast) -> Iterator[None]:
    """Frames are grey at once, so that the transformer has the device to itself."""
    vae = model.bundle.vae

    def grey(latent_BCTHW: Tensor, _state: Any) -> Tensor:
        frames, height, width = latent_BCTHW.shape[2:]
        return latent_BCTHW.new_zeros(1, 3, 4 * frames, 8 * height, 8 * width)

    with mock.patch.object(vae, "decode_chunk", grey):
        yield


@dataclass(frozen=True)
class Paced:
    """A video, and when its blocks came."""

    made: Made
    block_s: float
    """The median of the last blocks."""


def paced_video(
    model: lipcast.Lipcast, num_blocks: int, *, prompt: str | Path, **options: Any
) -> Paced:
    """Make a video and time its blocks: the steady ones are the last."""
    times: list[float] = []
    made = make_video(
        model,
        num_blocks,
        prompt=prompt,
        on_block=lambda: times.append(time.perf_counter()),
        **options,
    )
    gaps = [after - before for before, after in pairwise(times)]
    return Paced(made, median(gaps[len(gaps) // 2 :]))


def memory_of(made: Made) -> dict[str, Any]:
    """What a session reports of its memory; empty where none is planned."""
    found: dict[str, Any] = made.report.get("memory", {})
    return found


def profiled(work: Callable[[], object]) -> list[tuple[str, int, float]]:
    """(kernel, launches, milliseconds) of work on the GPU, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    rows = [
        (event.key, event.count, event.device_time_total / 1e3)
        for event in profiler.key_averages()
        if event.device_time_total
    ]
    return sorted(rows, key=lambda row: -row[2])
