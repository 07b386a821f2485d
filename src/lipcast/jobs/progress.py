"""Progress of a job. Input: the job and its finished segments. Output: frames, speed, time left."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lipcast.jobs.store import FINISHED, RUNNING, Job, Segment


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one job; None for what cannot be known yet."""

    num_done: int
    num_segments: int | None
    num_frames: int
    frames_per_s: float | None
    eta_s: float | None
    """Seconds left, by the mean of the finished segments; the one in flight does not count."""


def progress(job: Job, segments: Collection[Segment]) -> Progress:
    """Return the progress by the reports of the finished segments."""
    frames = sum(int(segment.report.get("frames", 0)) for segment in segments)
    took_s = sum(float(segment.report.get("elapsed_s", 0)) for segment in segments)
    return Progress(
        num_done=len(segments),
        num_segments=job.num_segments,
        num_frames=frames,
        frames_per_s=frames / took_s if took_s > 0 else None,
        eta_s=_eta_s(job, len(segments), took_s),
    )


def _eta_s(job: Job, num_done: int, took_s: float) -> float | None:
    if job.state == FINISHED:
        return 0.0
    if job.state != RUNNING or job.num_segments is None or not num_done:
        return None
    return (job.num_segments - num_done) * took_s / num_done
