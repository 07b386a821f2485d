"""Counts of what has been made of a video, and the progress bar that shows them.

Input: every finished block. Output: frames per second, time to the first frame, what is left, and
memory; drawn on standard error where that is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lipcast.jobs.waiting import report_waits

_MIB = 2**20
_Block = TypeVar("_Block")


@dataclass
class Meter:
    """Counts what has been made so far. Times are in seconds since the command began."""

    began: float = field(default_factory=time.perf_counter)
    num_blocks: int | None = None
    blocks_done: int = 0
    frames_done: int = 0
    first_frame_s: float | None = None
    peak_rss_bytes: int = 0
    peak_gpu_bytes: int = 0
    """Reserved by torch on all GPUs; 0 where there is none."""
    _started: float = 0.0
    _last: float = 0.0
    _waited_s: float = 0.0

    def start(self, num_blocks: int | None) -> None:
        """Begin a video of `num_blocks` blocks; the model is loaded."""
        self.num_blocks, self.blocks_done, self.frames_done = num_blocks, 0, 0
        self._started = self._last = time.perf_counter()

    def watch(self, blocks: Iterable[_Block]) -> Iterator[_Block]:
        """Pass blocks on; the time spent waiting for them is not the writer's."""
        return report_waits(blocks, self._add_wait)

    def _add_wait(self, seconds: float) -> None:
        self._waited_s += seconds

    def count(self, num_frames: int) -> None:
        """Count one block of `num_frames` that has been written."""
        if self.first_frame_s is None:
            self.first_frame_s = self.elapsed_s
        self.blocks_done += 1
        self.frames_done += num_frames
        self._last = time.perf_counter()
        self.peak_rss_bytes = max(self.peak_rss_bytes, _rss_bytes())
        self.peak_gpu_bytes = max(self.peak_gpu_bytes, _gpu_bytes())

    def stop(self) -> None:
        """Stop the clock: the file is complete."""
        self._last = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.began

    @property
    def generating_s(self) -> float:
        """Seconds from the loaded model to the last block written."""
        return self._last - self._started

    @property
    def mux_s(self) -> float:
        """Seconds of `generating_s` that were spent on writing."""
        return max(self.generating_s - self._waited_s, 0.0)

    @property
    def frames_per_second(self) -> float:
        return self.frames_done / max(self.generating_s, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Estimated seconds left; None before the first block, and where the end is open."""
        if not self.blocks_done or self.num_blocks is None:
            return None
        return self.generating_s / self.blocks_done * (self.num_blocks - self.blocks_done)

    def line(self) -> str:
        """Return everything in one line."""
        parts = [f"{self.blocks_done}/{self.num_blocks or '?'} blocks"]
        if self.first_frame_s is not None:
            parts.append(f"{self.frames_per_second:.1f} frames/s")
            parts.append(f"first frame {self.first_frame_s:.1f} s")
        if self.left_s is not None:
            parts.append(f"{self.left_s:.0f} s left")
        for name, size in (("memory", self.peak_rss_bytes), ("GPU", self.peak_gpu_bytes)):
            if size:
                parts.append(f"{name} {size / _MIB:.0f} MiB")
        return ", ".join(parts)


def _rss_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _gpu_bytes() -> int:
    # A block that was made has loaded torch; this module never does, so that --help is quick.
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Bar that shows a `Meter`; nothing unless it is wanted and stderr is a terminal."""

    def __init__(self, meter: Meter, *, wanted: bool) -> None:
        self._meter = meter
        self._progress: Any = None
        self._stack = ExitStack()
        if wanted and sys.stderr.isatty():
            self._progress = _rich_progress()

    def __enter__(self) -> ProgressBar:
        self._stack.enter_context(self._progress or nullcontext())
        if self._progress is not None:
            self._progress.add_task("loading", total=None)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def update(self) -> None:
        """Draw the meter's counts."""
        if self._progress is None:
            return
        task = self._progress.task_ids[0]
        meter = self._meter
        self._progress.update(
            task, description=meter.line(), completed=meter.blocks_done, total=meter.num_blocks
        )


class StepBar(AbstractContextManager["StepBar"]):
    """Bar for work counted in bytes; nothing unless it is wanted and stderr is a terminal."""

    def __init__(self, *, wanted: bool) -> None:
        self._progress = _rich_progress() if wanted and sys.stderr.isatty() else None

    def __enter__(self) -> StepBar:
        if self._progress is not None:
            self._progress.start()
            self._progress.add_task("starting", total=None)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show `done` of `total` bytes of `what`."""
        if self._progress is not None:
            text = f"{what} {done / 1e9:.1f} of {total / 1e9:.1f} GB"
            self._progress.update(
                self._progress.task_ids[0], description=text, completed=done, total=total
            )


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)
