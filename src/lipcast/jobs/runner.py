"""Run one job, from wherever it is to its finished video.

Input: a lease, and a renderer of segments. Output: segments as files that are never written again, the video,
and its result as JSON beside it. Killed at any moment, the same call goes on with the first segment that is
not in the store. Every segment begins from the snapshot of the one before it, in one run as in many, so
that the video does not depend on what happened while it was made.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

from lipcast.config.models import VIDEO_FPS
from lipcast.env import logger
from lipcast.errors import CancelledError, InputError, LipcastError, OutputError
from lipcast.jobs.store import FAILED, FINISHED, Job, Lease, Segment, Store
from lipcast.jobs.tasks import (
    BLOCK_S,
    MIX,
    VOICES,
    JobEstimate,
    SegmentRenderer,
    SegmentTask,
    parts_of,
    snapshot_path,
    tasks_of,
    video_path,
    whole_sound,
)
from lipcast.jobs.webhook import post
from lipcast.media.concat import Joined, concat
from lipcast.media.hls import check_hls_target, hls_playlist, write_hls
from lipcast.media.signing import sign_video, signing_key
from lipcast.media.target import check_target, explained
from lipcast.weights.disk import sha256_of

_LOG = logger("jobs.runner")
_BITS_PER_PIXEL = 0.5
"""An assumption on the safe side, for crf 18."""
_COPIES = 3
"""The segments, the video, and its second form while its index is moved to the front."""
_SPARE_BYTES = 16 << 20
RESULT = "result.json"
"""In a job's folder, and beside the video."""


def run_jobs(
    store: Store,
    renderer: SegmentRenderer,
    *,
    name: str | None = None,
    log: Callable[[str], None] = _LOG.info,
) -> int:
    """Run all jobs that wait (or one, by name); returns how many of them failed.

    As many jobs are under way as the renderer is wide. Ctrl-C puts them back, after the segments in flight
    where there are several.
    """
    for job in store.jobs((FINISHED,)):  # a worker may have been killed before it tidied up
        _prune(store, job)
    if renderer.width == 1:
        return _run_in_turn(store, renderer, name, log, Event())
    stop = Event()
    with ThreadPoolExecutor(renderer.width) as threads:
        turns = [
            threads.submit(_run_in_turn, store, renderer, name, log, stop)
            for _ in range(renderer.width)
        ]
        try:
            return sum(turn.result() for turn in turns)
        except BaseException:
            stop.set()  # threads get no Ctrl-C
            raise


def _run_in_turn(
    store: Store,
    renderer: SegmentRenderer,
    name: str | None,
    log: Callable[[str], None],
    stop: Event,
) -> int:
    num_failed = 0
    while not stop.is_set() and (lease := store.lease(name)) is not None:
        try:
            run_leased(store, lease, renderer, log=log, stop=stop)
        except CancelledError:
            continue
        except LipcastError:  # logged, and in the store
            num_failed += 1
        finally:
            lease.release()
    return num_failed


def run_leased(
    store: Store,
    lease: Lease,
    renderer: SegmentRenderer,
    *,
    log: Callable[[str], None] = _LOG.info,
    stop: Event | None = None,
) -> None:
    """Run one job until it is done, or until `stop` is set, which acts like Ctrl-C.

    Raises what ended it early; the store then knows of a failure, and a job that was stopped waits again.
    """
    log = _logging_to_folder(lease, log)
    try:
        run_job(store, lease, renderer, log=log, stop=stop)
    except CancelledError as error:
        log(str(error))
        raise
    except LipcastError as error:
        with suppress(OutputError):  # the store's disk may be the full one; the first error counts
            store.fail(lease, str(error))
        log(f"job {lease.job.id} failed: {error}")
        _notify(lease, {"state": FAILED, "error": str(error)}, log)
        raise
    except KeyboardInterrupt:
        with suppress(LipcastError):  # cancelled meanwhile, or a store that cannot be written
            store.put_back(lease)
        raise


def join_finished(lease: Lease) -> Joined | None:
    """Write what is finished of a job that goes on from segment to segment; None if nothing is.

    Does not need the store. Raises LipcastError.
    """
    job, folder = lease.job, lease.folder
    assert not job.request["independent"]
    numbers = range(next(n for n in count() if not video_path(folder, n).is_file()))
    if not numbers:
        return None
    videos, output = [video_path(folder, number) for number in numbers], Path(job.request["output"])
    return concat(videos, output, sound=whole_sound(lease))


def _logging_to_folder(lease: Lease, log: Callable[[str], None]) -> Callable[[str], None]:
    """Return a callback that logs a line and appends it, with the time, to the log of the job's folder."""

    def log_both(line: str) -> None:
        with suppress(OSError), (lease.folder / "log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {line}\n")
        log(line)

    return log_both


def _notify(lease: Lease, what: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Post to the job's webhook, if it has one."""
    job = lease.job
    url = job.request.get("webhook")
    if url and (problem := post(url, {"job": job.id, "output": job.request["output"], **what})):
        log(problem)


def run_job(
    store: Store,
    lease: Lease,
    renderer: SegmentRenderer,
    *,
    log: Callable[[str], None],
    stop: Event | None = None,
) -> None:
    """Make what is missing of one job. Raises KeyboardInterrupt once `stop` is set."""
    log(f"job {lease.job.id}: begun, lease {lease.job.lease}")
    request, output = lease.job.request, Path(lease.job.request["output"])
    _check_inputs(request)
    check_target(output)
    if request.get("hls"):
        check_hls_target(output)
    estimate = renderer.estimate(request)
    _check_space(lease.folder, output, estimate, hls=bool(request.get("hls")))
    tasks = tasks_of(lease, estimate)
    store.plan(lease, len(tasks))

    def make(task: SegmentTask) -> None:
        if not _is_whole(store, lease, task.number):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            store.check(lease)
            _make(store, lease, renderer, task)
            log(f"job {lease.job.id}: segment {task.number + 1} of {len(tasks)}")

    if request.get("independent"):
        with ThreadPoolExecutor(renderer.width) as threads:
            deque(threads.map(make, tasks), maxlen=0)  # raises what went wrong
    else:
        deque(map(make, tasks), maxlen=0)
    store.check(lease)
    joined = concat(parts_of(lease, len(tasks)), output, sound=whole_sound(lease))
    if signing := signing_key(request.get("sign")):
        sign_video(output, signing)
    if request.get("hls"):
        write_hls(output)
    result = _result(store, lease, estimate, output) | {"frames": joined.num_frames}
    _write(lease.folder / RESULT, result)
    if not request.get("anonymous"):
        _write(output.with_name(f"{output.name}.json"), result)
    store.finish(lease)
    _prune(store, lease.job)
    log(f"job {lease.job.id}: {output}, {joined.duration_s:.2f} s")
    done = {key: result[key] for key in ("sha256", "frames")}
    _notify(lease, {"state": FINISHED, **done}, log)


def _prune(store: Store, job: Job) -> None:
    """Delete the segments of a finished job."""
    if job.request["keep_segments"]:
        return
    for pattern in ("segment-*", "past-*", "making*", "fade-*", MIX):
        for path in store.folder(job.id).glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(store.folder(job.id) / VOICES, ignore_errors=True)


def input_sha256(path: Path) -> str:
    """Return the hash of a file of a job; raises InputError where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Put it back and retry.") from error


def _check_inputs(request: Mapping[str, Any]) -> None:
    """Raise InputError where an input is no longer the file that was submitted."""
    for path, sha256 in request["sha256"].items():
        if input_sha256(Path(path)) != sha256:
            raise InputError(
                f"{path}: the file has changed since the job was submitted; "
                "put it back and retry, or submit a new job"
            )


def _check_space(folder: Path, output: Path, estimate: JobEstimate, *, hls: bool) -> None:
    seconds = estimate.num_blocks * BLOCK_S
    pictures = estimate.height * estimate.width * VIDEO_FPS * seconds * _BITS_PER_PIXEL / 8
    made = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, int((_COPIES + hls) * pictures) - made) + _SPARE_BYTES
    for place in (folder, output.parent):
        free = shutil.disk_usage(place).free
        if free < needed:
            raise OutputError(
                f"{place}: {seconds:.0f} s of video need {needed / 2**20:.0f} MiB, and only "
                f"{free / 2**20:.0f} MiB are free; make room and retry"
            )


def _is_whole(store: Store, lease: Lease, number: int) -> bool:
    """Return whether a segment is in the store and its files are what was written."""
    segment = store.segments(lease.job.id).get(number)
    if segment is None:
        return False
    files = ((video_path(lease.folder, number), segment.sha256),
             (snapshot_path(lease.folder, number), segment.snapshot_sha256))  # fmt: skip
    for path, sha256 in files:
        if not path.is_file() or input_sha256(path) != sha256:
            _LOG.warning("%s: damaged or gone; it is made again", path)
            return False
    return True


def _make(store: Store, lease: Lease, renderer: SegmentRenderer, task: SegmentTask) -> None:
    folder, number, began_s = lease.folder, task.number, time.perf_counter()
    video_to, snapshot_to = task.video_to, task.snapshot_to
    report = renderer.render(lease.job.request, task)
    hashes = input_sha256(video_to), input_sha256(snapshot_to)
    try:
        for made, finished in (
            (snapshot_to, snapshot_path(folder, number)),
            (video_to, video_path(folder, number)),
        ):
            _sync(made)
            made.replace(finished)
        _sync(folder)
    except OSError as error:
        raise explained(folder / "segment", error) from error
    elapsed_s = time.perf_counter() - began_s
    store.add_segment(lease, Segment(number, *hashes, {"elapsed_s": elapsed_s, **report}))


def _result(store: Store, lease: Lease, estimate: JobEstimate, output: Path) -> dict[str, Any]:
    """Return everything that is needed to make the video again."""
    segments = store.segments(lease.job.id).values()
    return {
        "status": "finished",
        "job": lease.job.id,
        "output": str(output),
        "sha256": input_sha256(output),
        "hls": str(hls_playlist(output)) if lease.job.request.get("hls") else None,
        "request": dict(lease.job.request),
        "plan": dict(estimate.plan),
        "segments": [
            {"number": s.number, "sha256": s.sha256, **s.report}
            for s in sorted(segments, key=lambda segment: segment.number)
        ],
    }


def _write(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps(document, indent=2, default=str), "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise explained(path, error) from error


def _sync(path: Path) -> None:
    """Wait until what was written to a file or a folder is on the disk."""
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":
        return  # Windows opens no folders, and keeps a journal of their entries.
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
