"""`lipcast generate` with a long sound: a job under a name of its own, which is run at once.

Input: a checked request. Output: the same video and the same document as from one piece. The name follows
from the request and the content of its files, so that the same command finds what was finished before.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from lipcast.cli.job_request import as_job
from lipcast.cli.made import document, length, unfinished
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.request import GenerateRequest
from lipcast.cli.talk import Talk
from lipcast.core.config import VIDEO_FPS
from lipcast.errors import OutputError, UsageError
from lipcast.runtime import cache_dir, launched

if TYPE_CHECKING:
    from lipcast.jobs.store import Store
    from lipcast.jobs.tasks import Outlook, SegmentTask

LONG_S = 600
_DEFAULT_CLIP_FRAMES = 48
_LEAST_BYTES_PER_S = 300
"""Of the sparsest codecs for speech (2.4 kbit/s): a smaller file need not be scanned."""


class MeteredMaker:
    """A maker on this machine whose blocks a meter counts and a bar shows."""

    width = 1

    def __init__(self, meter: Meter, bar: ProgressBar) -> None:
        from lipcast.jobs.local import LocalMaker

        self._meter, self._bar = meter, bar
        self._maker = LocalMaker(on_block=self._count)
        self.described: Mapping[str, Any] = {}
        """The sizes of the last video."""

    def look(self, request: Mapping[str, Any]) -> Outlook:
        """What a job will be; the meter counts from here."""
        outlook = self._maker.look(request)
        self._meter.start(outlook.num_blocks)
        self.described = outlook.plan
        return outlook

    def make(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        """One segment. What was finished before the first one is not counted."""
        if not self._meter.blocks_done and self._meter.num_blocks is not None:
            self._meter.num_blocks -= task.first_block
        return self._maker.make(request, task)

    def close(self) -> None:
        self._maker.close()

    def _count(self, num_frames: int) -> None:
        self._meter.count(num_frames)
        self._bar.update()


def is_long(request: GenerateRequest) -> bool:
    """Whether the video is made in segments.

    Raises InputError for a sound that cannot be used, UsageError for segments under torchrun.
    """
    from lipcast.media.audio import open_audio

    if launched() is not None:
        if request.segment_s:
            raise UsageError(
                "--segment: expected one process, got several of a launcher; use --gpus in its place"
            )
        return False
    if request.segment_s is not None:
        return request.segment_s > 0
    if request.audio.stat().st_size < LONG_S * _LEAST_BYTES_PER_S:
        return False
    options, seconds = request.options, open_audio(request.audio).duration_s
    if options.num_clip is not None:
        frames = options.num_clip * (options.infer_frames or _DEFAULT_CLIP_FRAMES)
        seconds = min(seconds, frames / VIDEO_FPS)
    return seconds > LONG_S


def make_long(
    request: GenerateRequest, meter: Meter, bar: ProgressBar, talk: Talk
) -> dict[str, Any]:
    """Make what is missing, write the video, forget the job; returns the document of what was done.

    Raises UsageError where another process makes this video.
    """
    from lipcast.jobs.runner import work
    from lipcast.jobs.store import Store

    store: Store = Store(cache_dir() / "jobs")
    name = _enter(store, as_job(request))
    claim = store.claim(name)
    if claim is None:
        raise UsageError(
            f"{request.output}: expected nobody to make this video already, got another process; "
            "see `lipcast job watch`"
        )
    with closing(MeteredMaker(meter, bar)) as maker:
        try:
            work(store, claim, maker, tell=talk.detail)
        except (KeyboardInterrupt, Exception) as error:
            num_frames, kept = _keep(store, name)
            if not kept:
                raise
            report, described = _report(store, name), maker.described
            told = document(
                request, meter, talk, num_frames=num_frames, described=described, report=report
            )
            raise unfinished(error, kept, told) from error
        meter.stop()
        report, described = _report(store, name), maker.described
    store.remove(name)
    return {"status": "finished"} | document(
        request, meter, talk, num_frames=report["frames"], described=described, report=report
    )


def _enter(store: Store, job: Mapping[str, Any]) -> str:
    """The name of the job, which waits in the store when this returns."""
    from lipcast.jobs.store import CANCELLED, FAILED, FINISHED

    name = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:8]
    state = next((known.state for known in store.jobs() if known.id == name), None)
    if state == FINISHED:  # a kill came before it was forgotten
        store.remove(name)
    if state in (None, FINISHED):
        store.submit([job], names=[name])
    elif state in (FAILED, CANCELLED):
        store.retry(name)
    return name


def _keep(store: Store, name: str) -> tuple[int, str]:
    """Write the finished segments as the video: its length, and what to say; nothing for none."""
    from lipcast.jobs.runner import join_finished

    again = "the same command goes on from there"
    job = store.job(name)
    try:
        joined = join_finished(store, job)
    except OutputError as error:
        return 0, f"finished segments are kept in {store.folder(name)} ({error}); {again}"
    if joined is None:
        return 0, ""
    return joined.num_frames, f"kept in {joined.path}: {length(joined.num_frames)}; {again}"


def _report(store: Store, name: str) -> dict[str, Any]:
    """What the finished segments tell together, as one session would."""
    segments = store.segments(name)
    reports = [segments[number].report for number in sorted(segments)]
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report["seconds"])
    own = {"job": name, "frames": sum(report["frames"] for report in reports)}
    return {**(reports[-1] if reports else {}), **own, "seconds": dict(seconds)}
