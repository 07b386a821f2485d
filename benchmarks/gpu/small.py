"""The check `small`: the true model under 24, 16, 12 and 8 GiB, in the seconds and bytes that are planned."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import Any

import lipcast
from gpu.ballast import full_device
from gpu.checkpoints import FULL, SMALL, random_checkpoint
from gpu.report import Report, Settings
from gpu.runner import Part
from gpu.steps import memory_of, paced_video
from gpu.videos import make_video, psnr_db

GIB = 2**30
BUDGETS_GIB = (24.0, 16.0, 12.0, 8.0)
_SMALL_GIB = {24.0: 0.02, 16.0: 0.0125, 12.0: 0.0115, 8.0: 0.011}
"""What stands for a budget where the small model stands for the true one."""
_SECONDS_ERROR, _BYTES_ERROR = 0.15, 0.05


def budget(gibibytes: float, settings: Settings, report: Report, **memory: Any) -> None:
    """One budget: two videos after each other, against the plan."""
    checkpoint, model, limit = _loaded(settings, gibibytes, **memory)
    size = _size(settings)
    blocks = 9 if settings.is_full else 4
    name = f"{gibibytes:g} GiB" + "".join(f", {value} rings" for value in memory.values())
    with report.attempt(f"{name}: a video is made"):
        paced = paced_video(model, blocks, prompt=checkpoint.prompt, **size)
        document = memory_of(paced.made)
        report.figure("memory", document)
        frames_per_s, planned = 12 / paced.block_s, document["plan"]["frames_per_s"]
        report.figure("frames/s", round(frames_per_s, 2))
        if settings.is_cuda:  # rates of a CPU are not known
            text = f"{name}: frames per second are as planned within {_SECONDS_ERROR:.0%}"
            close = abs(planned / frames_per_s - 1) <= _SECONDS_ERROR
            report.claim(text, close, f"{frames_per_s:.2f}, planned {planned}")
        taken = document["fallbacks"]["taken"]
        report.claim(f"{name}: nothing had to give way", not taken, taken or "nothing did")
        _claim_bytes(report, name, document, limit, settings)
    with report.attempt(f"{name}: a second video is made"):
        again = make_video(model, 2, prompt=checkpoint.prompt, **size)
        taken = memory_of(again)["fallbacks"]["taken"]
        report.claim(f"{name}: a second video fits too", not taken, taken or "nothing gave way")


def _claim_bytes(
    report: Report, name: str, document: dict[str, Any], limit: int, settings: Settings
) -> None:
    """Bytes of the driver, of the allocator and of the stores, against plan and budget."""
    planned, measured = document["plan"]["vram"]["peak_bytes"], document["measured"]
    report.claim(f"{name}: the plan is within the budget", planned <= limit, f"{planned} bytes")
    if not settings.is_cuda:
        peak = measured["vram_peak_bytes"]
        report.claim(f"{name}: what is taken is within the budget", peak <= limit, f"{peak} bytes")
        return
    used = _driver_bytes() or measured["device_used_bytes"]
    report.claim(f"{name}: the driver's count is within the budget", used <= limit, f"{used} bytes")
    error = planned / used - 1
    text = f"{name}: bytes are as planned within {_BYTES_ERROR:.0%}"
    report.claim(text, abs(error) <= _BYTES_ERROR, f"{used}, planned {planned}")
    report.figure("allocated", measured["allocated_peak_bytes"])
    report.figure("reserved", measured["reserved_peak_bytes"])


def _driver_bytes() -> int | None:
    """What the driver says that this card's processes take; None without its tool."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return int(done.stdout.splitlines()[0]) * 2**20 if done.returncode == 0 else None


def descent(settings: Settings, report: Report) -> None:
    """The true model on a card that fills up: the video goes on, with the same picture."""
    text = "a card that fills up does not end the video"
    if not settings.is_cuda:
        report.skip(text, "no CUDA device; tests hold it with injected errors")
        return
    checkpoint, model, _ = _loaded(settings, 48.0)
    size = {"prompt": checkpoint.prompt, **_size(settings)}
    with report.attempt(text):
        undisturbed = make_video(model, 6, **size)
        with full_device(model, block=3, left_bytes=256 << 20):
            made = make_video(model, 6, **size)
        report.claim(text, made.frames.shape == undisturbed.frames.shape, made.fallbacks)
        report.claim("a fallback was taken", bool(made.fallbacks), made.fallbacks)
        found = psnr_db(made.frames, undisturbed.frames)
        report.claim("lossless fallbacks keep the picture (45 dB)", found >= 45, found)


def _loaded(
    settings: Settings, gibibytes: float, **memory: Any
) -> tuple[Any, lipcast.Lipcast, int]:
    """The checkpoint, the model loaded in a budget, and the budget in bytes."""
    shapes = FULL if settings.is_full else SMALL
    checkpoint = random_checkpoint(settings.model, shapes, "fp8")
    limit = int((gibibytes if settings.is_full else _SMALL_GIB.get(gibibytes, 1.0)) * GIB)
    model = lipcast.load(checkpoint.folder, device=str(settings.device), vram=f"{limit}B", **memory)
    return checkpoint, model, limit


def _size(settings: Settings) -> dict[str, Any]:
    if settings.is_full:
        return {"size": "704*384", "infer_frames": 48}
    return {"size": "64*64", "infer_frames": 12}


PARTS = (
    *(Part(f"{gib:g}GiB", partial(budget, gib), 100) for gib in BUDGETS_GIB),
    Part("8GiB-int4", partial(budget, 8.0, kv_precision="int4"), 100),
    Part("descent", descent, 110),
)
