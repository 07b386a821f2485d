"""Right or wrong, by whole videos: placements, precisions, races, memory.

The embedded model makes the same short video in every way there is. What only moves or orders work must
give the same bits; what rounds must stay above a floor of decibels.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import lipcast
from gpu.ballast import full_device
from gpu.checkpoints import MIDDLE, random_checkpoint
from gpu.report import Report, Settings
from gpu.videos import SHORT_VIDEO, TINY_VIDEO, Made, make_video, psnr_db
from lipcast.memory.copier import CudaCopier

PLENTY = {"vram": "2GB"}
"""A budget that holds everything; on a CPU it asks for a plan."""
PLACEMENTS: dict[str, dict[str, Any]] = {
    "weights streamed": {"offload_model": True},
    "rings streamed": {"offload_kv_cache": True},
    "everything streamed": {"offload_model": True, "offload_kv_cache": True},
}
LEAST_DB = {"fp32": 40.0, "bf16": 28.0, "int8": 28.0, "fp8": 26.0, "int4": 20.0}
"""Against the CPU in float32: frames of the whole video, free to drift."""
_SLEEP_CYCLES = 20_000_000
"""About 10 ms of a GPU."""


def precisions(settings: Settings, report: Report) -> None:
    """Every precision on the device against float32 on the CPU."""
    exact = _video(settings, lipcast.load("tiny", device="cpu", precision="fp32"))
    for precision, least_db in LEAST_DB.items():
        text = f"{precision} frames are within {least_db:.0f} dB of float32 on a CPU"
        with report.attempt(text):
            made = _video(settings, _loaded(settings, precision))
            found = psnr_db(made.frames, exact.frames)
            report.claim(text, found >= least_db and made.frames.shape == exact.frames.shape, found)


def placements(settings: Settings, report: Report) -> None:
    """Where memory lies, and in which order lanes are computed, changes no bit."""
    base = _video(settings, _planned(settings))
    with report.attempt("the same video twice has the same bits"):
        again = _video(settings, _planned(settings))
        _claim_equal(report, "the same video twice has the same bits", again, base)
    for name, memory in PLACEMENTS.items():
        text = f"with {name} the video has the same bits"
        with report.attempt(text):
            _claim_equal(report, text, _video(settings, _planned(settings, **memory)), base)
    text = "a wavefront gives the same video"
    with report.attempt(text):
        made = _video(settings, _planned(settings), schedule="wavefront")
        found = psnr_db(made.frames, base.frames)
        report.figure(
            "wavefront is equal bit for bit", bool(np.array_equal(made.frames, base.frames))
        )
        report.claim(text, found > 45, found)


def graphs(settings: Settings, report: Report) -> None:
    """Recorded ticks change no bit, across a new reference and many turns of the rings."""
    text = "with CUDA graphs the video has the same bits"
    if not settings.is_cuda:
        report.skip(text, "no CUDA device; tests/engine holds it with recorded operators")
        return
    for schedule in ("sequential", "wavefront"):
        options = {"num_blocks": 12, "schedule": schedule}
        base = _video(settings, _planned(settings, cuda_graphs="off"), **options)
        with report.attempt(f"{text}, {schedule}"):
            made = _video(settings, _planned(settings), **options)
            _claim_equal(report, f"{text}, {schedule}", made, base)
            counts = made.report.get("graphs", {})
            replayed = counts.get("replayed", 0) > 0 and not counts.get("refusal")
            report.claim(f"ticks are recorded and replayed, {schedule}", replayed, counts)


def races(settings: Settings, report: Report) -> None:
    """Late copies and late computation change no bit: everything waits for what it uses."""
    if not settings.is_cuda:
        report.skip(
            "late copies change no bit", "no CUDA device; tests/memory holds it with clocks"
        )
        return
    streamed = PLACEMENTS["everything streamed"]
    base = _video(settings, _planned(settings, **streamed))
    for name, late in {"copies": _late_copies, "computation": _late_computation}.items():
        text = f"late {name} change no bit"
        with report.attempt(text), late():
            made = _video(settings, _planned(settings, **streamed))
            _claim_equal(report, text, made, base)


@contextmanager
def _late_copies() -> Iterator[None]:
    """Every copy begins with a pause on its own stream."""
    copy = CudaCopier._copy

    def late(self: CudaCopier, stream: torch.cuda.Stream, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(_SLEEP_CYCLES)
        return copy(self, stream, *args, **kwargs)

    with mock.patch.object(CudaCopier, "_copy", late):
        yield


@contextmanager
def _late_computation() -> Iterator[None]:
    """Every pass begins with a pause on the stream that computes."""
    from lipcast.models.dit import DiT

    forward = DiT.forward

    def late(self: DiT, *args: Any, **kwargs: Any) -> Any:
        torch.cuda._sleep(_SLEEP_CYCLES)
        return forward(self, *args, **kwargs)

    with mock.patch.object(DiT, "forward", late):
        yield


def sessions(settings: Settings, report: Report) -> None:
    """Three videos on one model take the memory of one."""
    model, taken = _planned(settings, **PLACEMENTS["everything streamed"]), []
    for _ in range(4):
        _video(settings, model, num_blocks=2)
        gc.collect()
        taken.append({"tensors": tensor_bytes(), **_device_bytes(settings)})
    report.figure("bytes after each video", taken)
    for kind in taken[0]:
        grown = taken[-1][kind] - taken[0][kind]
        report.claim(f"{kind}: bytes do not grow from video to video", grown <= 0, f"{grown} bytes")


def tensor_bytes() -> int:
    """Bytes of all tensors of this process, wherever they are."""
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, Tensor) and found.device.type != "meta":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _device_bytes(settings: Settings) -> dict[str, int]:
    if not settings.is_cuda:
        return {}
    return {"device": torch.cuda.memory_allocated(settings.device)}


def out_of_memory(settings: Settings, report: Report) -> None:
    """A GPU that is really full: the video goes on, and keeps its bits."""
    text = "a full GPU does not end the video"
    if not settings.is_cuda:
        report.skip(text, "no CUDA device; tests/engine holds it with injected errors")
        return
    checkpoint = random_checkpoint("middle", MIDDLE, "bf16")
    options = {"prompt": checkpoint.prompt, "size": "704*384", "infer_frames": 48}
    model = lipcast.load(checkpoint.folder, device=str(settings.device), kv_precision="bf16")
    with report.attempt(text):
        undisturbed = make_video(model, 6, **options)
        with full_device(model, block=2, left_bytes=64 << 20):
            made = make_video(model, 6, **options)
        report.figure("fallbacks", made.fallbacks)
        report.claim(text, len(made.frames) == len(undisturbed.frames), made.fallbacks)
        report.claim("a fallback was taken", bool(made.fallbacks), made.fallbacks)
        found = psnr_db(made.frames, undisturbed.frames)
        report.claim("lossless fallbacks keep the picture", found > 45, found)


def sanitizer(settings: Settings, report: Report) -> None:
    """A short video under compute-sanitizer."""
    text = "compute-sanitizer finds no invalid access"
    tool = shutil.which("compute-sanitizer")
    if not settings.is_cuda or tool is None:
        report.skip(text, "needs a GPU and compute-sanitizer")
        return
    program = (
        "import lipcast; from gpu.videos import make_video;"
        "make_video(lipcast.load('tiny', device='cuda', offload_model=True), 1, size='64*64')"
    )
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_paths())
    last = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    report.claim(text, done.returncode == 0, last)


def _paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _loaded(settings: Settings, precision: str) -> lipcast.Lipcast:
    return lipcast.load("tiny", device=str(settings.device), precision=precision)


def _planned(settings: Settings, **memory: Any) -> lipcast.Lipcast:
    """The embedded model with memory planned, rings stored as they are computed."""
    precision = "bf16" if settings.is_cuda else "fp32"
    given = {**PLENTY, "precision": precision, "kv_precision": precision, **memory}
    return lipcast.load("tiny", device=str(settings.device), **given)


def _video(
    settings: Settings, model: lipcast.Lipcast, *, num_blocks: int | None = None, **options: Any
) -> Made:
    """The video that all of this is about: its ring wraps."""
    count, size = (5, SHORT_VIDEO) if settings.is_full else (2, TINY_VIDEO)
    return make_video(model, num_blocks or count, **{**size, **options})


def _claim_equal(report: Report, text: str, made: Made, base: Made) -> None:
    differing = int((made.frames != base.frames).sum())
    report.claim(text, differing == 0, f"{differing} of {base.frames.size} values differ")
