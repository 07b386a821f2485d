"""`lipcast generate` with a long sound: a job under a name of its own, which is run at once.

Input: a checked request. Output: the same video and the same document as from one piece. The name follows
from the request and the content of the files it names (not of the model's), so that the same command finds
what was finished before.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.console import Console
from lipcast.cli.job_request import as_job
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.request import GenerateRequest
from lipcast.cli.result import document, length, unfinished
from lipcast.config.models import VIDEO_FPS
from lipcast.env import cache_dir, launched, temporary_dir
from lipcast.errors import InputError, LipcastError, OutputError, UsageError
from lipcast.weights.configs import read_configs

if TYPE_CHECKING:
    from lipcast.jobs.store import Job, Lease, Store
    from lipcast.jobs.tasks import JobEstimate, SegmentTask
    from lipcast.media.audio import AudioFile

LONG_S = 600
_LEAST_BYTES_PER_S = 300
"""Rate of the sparsest codecs for speech (2.4 kbit/s): a smaller file need not be scanned."""


class MeteredRenderer:
    """Makes segments on this machine; a meter counts the blocks and a bar shows them."""

    width = 1

    def __init__(self, meter: Meter, bar: ProgressBar) -> None:
        from lipcast.jobs.local import LocalRenderer

        self._meter, self._bar = meter, bar
        self._renderer = LocalRenderer(on_block=self._count)

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        """Return what a job will be; the meter counts from here."""
        estimate = self._renderer.estimate(request)
        self._meter.start(estimate.num_blocks)
        return estimate

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        """Make one segment. What was finished before the first one is not counted."""
        if not self._meter.blocks_done and self._meter.num_blocks is not None:
            self._meter.num_blocks -= task.first_block
        return self._renderer.render(request, task)

    def close(self) -> None:
        self._renderer.close()

    def _count(self, num_frames: int) -> None:
        self._meter.count(num_frames)
        self._bar.update()


def is_long(request: GenerateRequest, sounds: Callable[[], Sequence[AudioFile | None]]) -> bool:
    """Return whether the video is made in segments; `sounds` opens its voices, if that has to be known.

    Raises InputError for a sound that cannot be used, UsageError for segments under torchrun.
    """
    if launched() is not None:
        if request.segment_s:
            raise UsageError("--segment: cannot be used under torchrun; use --gpus in its place")
        return False
    if request.segment_s is not None:
        return request.segment_s > 0
    if max(path.stat().st_size for path in request.voices if path) < LONG_S * _LEAST_BYTES_PER_S:
        return False
    options = request.options
    seconds = max(sound.duration_s for sound in sounds() if sound is not None)
    if options.num_clip is not None:
        clip = options.infer_frames or read_configs(request.model).dit.infer_frames
        frames = options.num_clip * clip
        seconds = min(seconds, frames / VIDEO_FPS)
    return seconds > LONG_S


def make_long(
    request: GenerateRequest, meter: Meter, bar: ProgressBar, console: Console
) -> dict[str, Any]:
    """Make what is missing, write the video, remove the job; returns the document of what was done.

    Raises UsageError when another process makes this video.
    """
    from lipcast.jobs.store import FINISHED

    store = _open_store(console)
    job = store.job(_find_or_submit(store, request))
    request = _as_submitted(request, job)
    if job.state != FINISHED:
        _make_missing(store, job, request, (meter, bar, console))
        meter.stop()
    report = _report(store, job.id)
    store.remove(job.id)
    return {"status": "finished"} | _document(request, meter, console, report["frames"], report)


def _open_store(console: Console) -> Store:
    """Return the store of the user's jobs; one among the temporary files where that cannot be used."""
    from lipcast.jobs.store import Store

    try:
        return Store(cache_dir() / "jobs")
    except OutputError as error:
        folder = temporary_dir() / "jobs"
        console.warn(f"segments are kept in {folder}: {error}")
        return Store(folder)


def _find_or_submit(store: Store, request: GenerateRequest) -> str:
    """Return the name of the video's job, which is in the store from then on.

    Fields that are randomised each time are no part of the name: the same command must find its job.
    """
    from lipcast.jobs.store import CANCELLED, FAILED, FINISHED

    job = as_job(request, anonymous=True)
    key = job | {
        "output": None if "output" in request.randomised_fields else job["output"],
        "options": job["options"] | ({"seed": None} if "seed" in request.randomised_fields else {}),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    state = next((known.state for known in store.jobs() if known.id == name), None)
    if state == FINISHED and not _is_there(store, name):
        store.remove(name)
    if state in (FAILED, CANCELLED):
        store.retry(name)
    store.submit([job], names=[name])
    return name


def _is_there(store: Store, name: str) -> bool:
    """Return whether a finished job's video is what was written; another worker may have finished it."""
    from lipcast.jobs.runner import RESULT, input_sha256

    with suppress(OSError, ValueError, InputError):
        result = json.loads((store.folder(name) / RESULT).read_text("utf-8"))
        return bool(input_sha256(Path(result["output"])) == result["sha256"])
    return False


def _as_submitted(request: GenerateRequest, job: Job) -> GenerateRequest:
    """Return the request with the output and the seed of its first run."""
    options = replace(request.options, seed=job.request["options"]["seed"])
    return replace(request, output=Path(job.request["output"]), options=options)


def _make_missing(
    store: Store, job: Job, request: GenerateRequest, reporters: tuple[Meter, ProgressBar, Console]
) -> None:
    """Run the job; when it ends early, raises UnfinishedError with what could be kept."""
    from lipcast.jobs.runner import run_leased

    meter, bar, console = reporters
    lease = store.lease(job.id)
    if lease is None:
        raise UsageError(
            f"{request.output}: another process makes this video already; see `lipcast job watch`"
        )
    try:
        with closing(MeteredRenderer(meter, bar)) as renderer:
            run_leased(store, lease, renderer, log=console.detail)
    except (KeyboardInterrupt, Exception) as error:
        if _is_there(store, job.id):  # it was over, but for the tidying up
            return
        num_frames, kept = _keep(lease)
        if not kept:
            raise
        report: dict[str, Any] = {"job": job.id}
        with suppress(LipcastError):  # the store's disk may be the full one
            report = _report(store, job.id)
        done = _document(request, meter, console, num_frames, report)
        raise unfinished(error, kept, done) from error
    finally:
        lease.release()


def _keep(lease: Lease) -> tuple[int, str]:
    """Write the finished segments as the video; returns its length, and a sentence (empty for none)."""
    from lipcast.jobs.runner import join_finished

    again = "the same command continues from there"
    try:
        joined = join_finished(lease)
    except LipcastError as error:
        return 0, f"finished segments are kept in {lease.folder} ({error}); {again}"
    if joined is None:
        return 0, ""
    return joined.num_frames, f"kept in {joined.path}: {length(joined.num_frames)}; {again}"


def _report(store: Store, name: str) -> dict[str, Any]:
    """Return the reports of the finished segments as one, like that of one session."""
    segments = store.segments(name)
    reports = [segments[number].report for number in sorted(segments)]
    if not reports:
        return {"job": name, "frames": 0}
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report["seconds"])
    last = reports[-1]
    found = {"job": name, "frames": sum(report["frames"] for report in reports)}
    if memory := last.get("memory"):
        taken = [
            fallback for report in reports for fallback in report["memory"]["fallbacks"]["taken"]
        ]
        found["memory"] = memory | {"fallbacks": memory["fallbacks"] | {"taken": taken}}
    return {**last, **found, "seconds": dict(seconds)}


def _document(
    request: GenerateRequest,
    meter: Meter,
    console: Console,
    num_frames: int,
    report: Mapping[str, Any],
) -> dict[str, Any]:
    described = report.get("video", {})
    return document(
        request, meter, console, num_frames=num_frames, described=described, report=report
    )
