"""Milliseconds of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from gpu.report import Settings


def median_ms(work: Callable[[], object], settings: Settings, *, repeats: int = 7) -> float:
    """Return the median of a few runs, after one that warms up."""
    work()
    times = [_events_ms(work) if settings.is_cuda else _clock_ms(work) for _ in range(repeats)]
    return round(median(times), 4)


def _events_ms(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _clock_ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def wait_for(settings: Settings) -> None:
    """Wait until the device has done everything."""
    if settings.is_cuda:
        torch.cuda.synchronize(settings.device)
