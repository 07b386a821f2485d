"""Counting while a video is made."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lipcast.cli import meter as module
from lipcast.cli.meter import Meter, ProgressBar


class Clock:
    """Stands still unless moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("lipcast.jobs.waiting.time", clock)
    return clock


def run(clock: Clock, *, num_blocks: int | None) -> Meter:
    """2 s of loading, then two blocks of 12 frames: 3 s to make, 1 s to write each."""
    meter = Meter(began=clock.now_s)
    clock.now_s += 2
    meter.start(num_blocks)

    def blocks() -> Iterator[int]:
        for _ in range(2):
            clock.now_s += 3
            yield 12

    for num_frames in meter.watch(blocks()):
        clock.now_s += 1
        meter.count(num_frames)
    return meter


def test_counts(clock: Clock) -> None:
    meter = run(clock, num_blocks=5)
    assert (meter.blocks_done, meter.frames_done) == (2, 24)
    assert meter.first_frame_s == 6
    assert meter.generating_s == 8
    assert meter.mux_s == 2
    assert meter.frames_per_second == 3
    assert meter.left_s == 12
    assert meter.line().startswith("2/5 blocks, 3.0 frames/s, first frame 6.0 s, 12 s left, ")
    assert meter.line().endswith(" MiB")


def test_memory_of_gpus_is_counted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda index: (3 + index) * 2**20,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    meter = run(clock, num_blocks=5)
    assert meter.peak_gpu_bytes == 7 * 2**20
    assert meter.line().endswith(", GPU 7 MiB")


def test_the_end_may_be_open(clock: Clock) -> None:
    meter = run(clock, num_blocks=None)
    assert meter.left_s is None
    assert meter.line().startswith("2/? blocks, 3.0 frames/s")


def test_before_the_first_block(clock: Clock) -> None:
    meter = Meter()
    meter.start(5)
    assert meter.line() == "0/5 blocks"
    assert meter.left_s is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("wanted", "looks"), [*itertools.product((True, False), repeat=2)])
def test_the_bar_is_drawn_where_somebody_looks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, wanted: bool, looks: bool
) -> None:
    screen = Terminal() if looks else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    meter = run(clock, num_blocks=5)
    with ProgressBar(meter, wanted=wanted) as bar:
        bar.update()
    assert ("2/5 blocks" in screen.getvalue()) == (wanted and looks)
