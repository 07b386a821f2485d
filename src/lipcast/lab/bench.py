"""Seconds per block, part by part, of a whole video on this machine.

Input: a loaded model, the schedules to compare, a number of blocks. Output: one `BenchRow` a schedule.
Sound and portrait are made here, since speed does not depend on what they show. Schedules take turns,
a block each, so that a machine that slows down slows both. The first blocks of a run, while the ring
fills and caches warm, are left out. Memory that runs out is reported with the block and the step.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.api import Lipcast, open_writer
from lipcast.config.generate_options import ScheduleName
from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.config.schedule import Tick
from lipcast.engine.backend import LocalBackend
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.session import Session
from lipcast.errors import MemoryBudgetError
from lipcast.lab.sampler import own_peak_rss_bytes
from lipcast.parallel.distributed_model import DistributedModel

PARTS = ("speech_s", "dit_s", "vae_s", "mux_s")
_PORTRAIT_SIDE = 256


class OutOfMemoryError(MemoryBudgetError):
    """Memory ran out; `document` says at which block, and in which step or part."""

    def __init__(self, cause: BaseException, place: Place) -> None:
        step = "" if place.step is None else f", step {place.step}"
        sentence = f"memory ran out at block {place.block}{step} ({place.part}): {cause}"
        super().__init__(sentence.splitlines()[0])
        error = {"kind": type(self).__name__, "message": str(self), "exit_code": self.exit_code}
        self.document = {"status": "failed", "error": error, **asdict(place)}


@dataclass
class Place:
    """What is being computed."""

    part: str = "preparing"
    block: int = 0
    step: int | None = None


class _TracingExecutor(LaneExecutor):
    """An executor that says where it is."""

    def __init__(self, place: Place, *what: Any, **more: Any) -> None:
        super().__init__(*what, **more)
        self._place = place

    def start(self, block: int, *given: Any, **more: Any) -> None:
        self._place.part, self._place.block, self._place.step = "transformer", block, 0
        super().start(block, *given, **more)

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        self._place.part = "transformer"
        self._place.block, self._place.step = tick[0].block, tick[0].step
        finished = super().run(tick)
        self._place.part, self._place.step = "decoder", None
        return finished


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Medians over the counted blocks, in seconds per block of 12 frames."""

    schedule: str
    parts: dict[str, float]
    block_s: float
    block_min_s: float
    block_max_s: float
    frames_per_s: float
    first_frame_s: float
    """From the request to the first frames: portrait, prompt and sink included, loading not."""
    num_blocks: int
    cpu_s: float
    """Seconds that processors worked for a block, all threads: other programs disturb them less."""
    laps_s: list[float]
    """Seconds of each counted block."""


@dataclass
class _Run:
    """One schedule's video while it is being measured."""

    schedule: ScheduleName
    session: Session
    opened_s: float
    writer: Any = None
    first_frame_s: float = 0.0

    def block(self) -> dict[str, float] | None:
        """Make and mux the next block; None at the end."""
        busy = time.process_time()
        made = next(self.session, None)
        if made is None:
            return None
        begin = time.perf_counter()
        self.writer.write(made.frames, made.audio)
        timings = made.timings
        return {
            "speech_s": timings.speech_s,
            "dit_s": timings.dit_s,
            "vae_s": timings.vae_s,
            "mux_s": time.perf_counter() - begin,
            "cpu_s": time.process_time() - busy,
        }


def bench(
    model: Lipcast,
    *,
    schedules: Sequence[ScheduleName] = ("sequential", "wavefront"),
    num_blocks: int = 8,
    warm_up_blocks: int = 4,
    **options: Any,
) -> list[BenchRow]:
    """Measure each schedule over `num_blocks` blocks after `warm_up_blocks`; one on several devices.

    A wavefront's blocks come out after its first ticks, several steps of several blocks at once;
    its seconds per block are those between two blocks, so both schedules compare directly.
    Raises OutOfMemoryError.
    """
    place = Place()
    backend, together = model.backend, [schedules]
    # Under a plan, and on several devices, errors say themselves where they were.
    if isinstance(backend, LocalBackend) and backend.manager is None:
        traced = partial(_TracingExecutor, place)
        model = Lipcast(model.bundle, LocalBackend(model.bundle, make_executor=traced))
    else:  # a schedule has the memory to itself
        together = [[schedule] for schedule in schedules]
    try:
        return [
            row
            for group in together
            for row in _bench(model, group, num_blocks, warm_up_blocks, options)
        ]
    except (MemoryError, torch.OutOfMemoryError, MemoryBudgetError) as error:
        raise OutOfMemoryError(error, place) from error


def _bench(
    model: Lipcast,
    schedules: Sequence[ScheduleName],
    num_blocks: int,
    warm_up_blocks: int,
    options: dict[str, Any],
) -> list[BenchRow]:
    seconds = (num_blocks + warm_up_blocks) * 12 / VIDEO_FPS
    with tempfile.TemporaryDirectory() as folder:
        sound = _write_sound(Path(folder) / "voice.wav", seconds)
        runs = [_open(model, name, sound, Path(folder), options) for name in schedules]
        laps: dict[str, list[dict[str, float]]] = {name: [] for name in schedules}
        for _ in range(num_blocks + warm_up_blocks):
            for run in runs:
                lap = run.block()
                assert lap is not None, "the sound is as long as the blocks asked for"
                laps[run.schedule].append(lap)
        for run in runs:
            run.session.close()
            run.writer.close()
        return [_row(run, laps[run.schedule][warm_up_blocks:]) for run in runs]


def conditions(model: Lipcast) -> dict[str, Any]:
    """Return the conditions that the figures hold for."""
    bundle, backend = model.bundle, model.backend
    gpu = torch.cuda.get_device_name(bundle.device) if bundle.device.type == "cuda" else None
    return {
        "lipcast": version("lipcast"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "precision": str(bundle.dit.dtype).removeprefix("torch."),
        "weights": bundle.precision,
        "layout": str(backend.plan.layout) if isinstance(backend, DistributedModel) else None,
        "peak_rss_bytes": own_peak_rss_bytes(),
    }


def _gpu(index: int) -> dict[str, Any]:
    """Return the card, and the most that torch took of it, in bytes."""
    return {
        "name": torch.cuda.get_device_name(index),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(index),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(index),
    }


def _open(
    model: Lipcast, schedule: ScheduleName, sound: Path, folder: Path, options: dict[str, Any]
) -> _Run:
    begin = time.perf_counter()
    session = model.stream(image=_portrait(), audio=sound, schedule=schedule, **options)
    run = _Run(schedule, session, time.perf_counter() - begin)
    begin = time.perf_counter()
    first = next(session)
    run.first_frame_s = run.opened_s + time.perf_counter() - begin
    run.writer = open_writer(folder / f"{schedule}.mp4", first)
    run.writer.write(first.frames, first.audio)
    return run


def _row(run: _Run, laps: list[dict[str, float]]) -> BenchRow:
    totals = [sum(lap[part] for part in PARTS) for lap in laps]
    block_s = statistics.median(totals)
    return BenchRow(
        schedule=run.schedule,
        parts={part: statistics.median(lap[part] for lap in laps) for part in PARTS},
        block_s=block_s,
        block_min_s=min(totals),
        block_max_s=max(totals),
        frames_per_s=12 / block_s,
        first_frame_s=run.first_frame_s,
        num_blocks=len(laps),
        cpu_s=statistics.median(lap["cpu_s"] for lap in laps),
        laps_s=totals,
    )


def _portrait() -> NDArray[np.uint8]:
    """Return a smooth picture."""
    ramp = np.linspace(0, 255, _PORTRAIT_SIDE)
    planes = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), axis=-1)
    return planes.astype(np.uint8)


def _write_sound(path: Path, seconds: float) -> Path:
    """Write a buzz that opens and closes, a block longer than asked: the first block is not a lap."""
    t = np.arange(round((seconds + 12 / VIDEO_FPS) * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 140 * t) * np.clip(np.sin(2 * np.pi * 4 * t), 0, 1) * 0.3
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


def _cpu_name() -> str:
    """Return the processor's name where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
