"""Result of `lipcast generate`, as one JSON document and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lipcast.cli.console import Console
from lipcast.cli.error_report import describe_error
from lipcast.cli.meter import Meter
from lipcast.cli.request import GenerateRequest
from lipcast.config.models import VIDEO_FPS
from lipcast.errors import LipcastError


class UnfinishedError(LipcastError):
    """The video ended early, and its finished frames are kept. `document` is what was done."""

    def __init__(self, sentence: str, *, exit_code: int, document: Mapping[str, Any]) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.document = document


def unfinished(error: BaseException, kept: str, document: Mapping[str, Any]) -> UnfinishedError:
    """Return the error of a video that ended early because of `error`; `kept` says what there is of it."""
    explanation = describe_error(error)
    return UnfinishedError(
        f"{explanation.sentence.rstrip('.')}; {kept}",
        exit_code=explanation.exit_code,
        document={
            "status": "stopped" if explanation.was_interrupted else "failed",
            "reason": explanation.sentence,
            **document,
        },
    )


def length(num_frames: int) -> str:
    """Return the length of a video in frames and seconds."""
    return f"{num_frames} frames, {num_frames / VIDEO_FPS:.2f} s"


def summary(meter: Meter, num_frames: int) -> str:
    """Return length, speed and time to the first frame of a finished video."""
    if meter.first_frame_s is None:  # all was finished before
        return length(num_frames)
    speed = f"{meter.frames_per_second:.1f} frames/s"
    return f"{length(num_frames)}, at {speed}, first frame after {meter.first_frame_s:.1f} s"


def document(
    request: GenerateRequest,
    meter: Meter,
    console: Console,
    *,
    num_frames: int,
    described: Mapping[str, Any],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was done as JSON values: `described`: sizes of the video; `report`: that of its session."""
    return {
        "output": str(request.output.resolve()),
        "frames": num_frames,
        "duration_s": num_frames / VIDEO_FPS,
        "seed": request.options.seed,
        "frames_per_second": meter.frames_per_second,
        "time_to_first_frame_s": meter.first_frame_s,
        "elapsed_s": meter.elapsed_s,
        "seconds_by_part": {"mux_s": meter.mux_s, **report.get("seconds", {})},
        "peak_rss_bytes": meter.peak_rss_bytes,
        "peak_gpu_bytes": meter.peak_gpu_bytes,
        **{name: report.get(name) for name in ("memory", "layout", "ranks", "bottleneck", "job")},
        "request": {
            k: v for k, v in asdict(request).items() if k not in ("accepted", "randomised_fields")
        },
        **described,
        "accepted": dict(request.accepted),
        "warnings": list(console.warnings),
    }
