"""Videos that are made for clients: jobs of a workspace, made one after the other with the server's model.

Input: checked forms. Output: jobs, and their files. A job's folder holds its inputs and its video. One thread
makes them in segments; killed at any moment, the next server goes on with the first segment that is missing.
Live sessions come first: while somebody is spoken to, blocks of a video are made slowly, and a video whose
session does not fit beside the live ones waits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import VIDEO_FPS
from lipcast.env import cache_dir
from lipcast.errors import (
    AdmissionError,
    BusyError,
    InputError,
    LipcastError,
    QueueFullError,
    UsageError,
)
from lipcast.jobs.runner import input_sha256, run_leased
from lipcast.jobs.store import CANCELLED, FAILED, FINISHED, RUNNING, WAITING, Job, Lease, Store
from lipcast.jobs.tasks import JOB_DEFAULTS, JobEstimate, SegmentRenderer, SegmentTask
from lipcast.media.image import load_portrait
from lipcast.media.target import explained
from lipcast.media.uploads import cut_sound, sound_length_s
from lipcast.serve.logs import log_event
from lipcast.serve.portraits import FORMATS
from lipcast.serve.settings import ServeSettings
from lipcast.serve.video_form import VideoForm

MadeWith = Mapping[str, Any]
MakeRenderer = Callable[[Any, Callable[[int], None]], SegmentRenderer]
VIDEO = "video.mp4"
"""In a job's folder."""
_INCOMING = "incoming-"
_SAME_PICTURES = ("model", "precision", "loras", "decoder")
_LOOK_S = 5.0
_GIVE_WAY_S, _GIVE_WAY_LOOK_S = 2.0, 0.05
"""How long a block waits while somebody is spoken to: live comes first, and videos go on nevertheless."""
_REFUSED_S = 15.0
"""How long memory is left free for a live session that was refused for it."""
_ABANDONED_S = 3600.0
_LAST_BLOCK_S = 10.0
"""How long the end of the server waits for the block in flight."""


def made_with(**fields: Any) -> MadeWith:
    """Return what a job says of its model, with the defaults of `load`."""
    return {
        "model": "tiny", "device": None, "precision": None, "loras": [], "decoder": None,
        "memory": asdict(MemoryOptions()), "gpus": asdict(GpuOptions()), **fields,
    }  # fmt: skip


def model_name(request: Mapping[str, Any]) -> str:
    """Return what clients call the model of a job."""
    return Path(request["model"]).name


def local_renderer(model: Any, on_block: Callable[[int], None]) -> SegmentRenderer:
    """Return what makes segments with a loaded model."""
    from lipcast.jobs.local import LocalRenderer

    return LocalRenderer(on_block, model=model)


class VideoQueue:
    """The videos of one server."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        options: GenerateOptions,
        made_with: MadeWith,
        make_renderer: MakeRenderer = local_renderer,
    ) -> None:
        """`options` hold for every video; a request may choose some of them."""
        self.settings, self.options = settings, options
        self.is_speaking: Callable[[], bool] = lambda: False
        """Whether a live session says something now."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called, from the thread that makes videos, where a segment found no memory."""
        self.made_with, self._make_renderer = made_with, make_renderer
        self._submitting = threading.Lock()
        self._woken, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._refused_until = 0.0
        self._lease: Lease | None = None
        self._num_frames = 0
        """Of the segment that is being made."""

    @cached_property
    def store(self) -> Store:
        """The jobs. Raises OutputError where the workspace cannot be used."""
        folder = self.settings.workspace or cache_dir() / "videos"
        return Store(folder.resolve())

    # What clients ask for.

    def add(self, form: VideoForm, *, key: str | None = None) -> Job:
        """Submit a video; `key`: the same one again returns the first one's job.

        Raises InputError, UsageError, QueueFullError, OutputError.
        """
        incoming = self.store.workspace / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            incoming.mkdir()
            request = self._take(form, incoming)
            name = _name(key)
            with self._submitting:
                known = self.find(name)
                if known is not None:
                    return _same(known, request)
                if len(self.store.jobs((WAITING,))) >= self.settings.max_videos:
                    raise QueueFullError(
                        f"{self.settings.max_videos} videos wait already; try again later"
                    )
                folder = self.store.folder(name)
                if folder.exists():
                    raise BusyError("the video of this key is being deleted; try again in a moment")
                incoming.replace(folder)
                self.store.submit([_placed(request, folder)], names=[name])
        except OSError as error:
            raise explained(incoming, error) from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self._woken.set()
        log_event("video submitted", video=name)
        return self.store.job(name)

    def find(self, name: str) -> Job | None:
        """Return a job by name; None where there is none, or it was deleted."""
        with suppress(InputError):
            job = self.store.job(name)
            return None if job.state == CANCELLED else job
        return None

    def jobs(self) -> list[Job]:
        """Return all jobs, in order of submission."""
        return self.store.jobs((WAITING, RUNNING, FINISHED, FAILED))

    def delete(self, name: str) -> None:
        """Remove a job and its files; one that is being made ends after the block in flight."""
        with suppress(InputError):  # somebody else has deleted it
            while not self._try_to_delete(name):
                time.sleep(_GIVE_WAY_LOOK_S)  # it is being finished
        log_event("video deleted", video=name)

    def _try_to_delete(self, name: str) -> bool:
        with suppress(UsageError):  # it has ended
            self.store.cancel(name)
        with suppress(UsageError):
            self.store.remove(name)
            return True
        return self.store.job(name).state == CANCELLED  # whoever makes it removes it

    def progress(self, job: Job, num_segments_done: int) -> float:
        """Return the share that is done, 0 to 1."""
        if job.state == FINISHED:
            return 1.0
        lease = self._lease
        here = self._num_frames if lease is not None and lease.job.id == job.id else 0
        in_segment = min(1.0, here / VIDEO_FPS / float(job.request["segment_s"]))
        return min(0.99, (num_segments_done + in_segment) / (job.num_segments or 1))

    def ended_s(self, job: Job) -> float | None:
        """Return when a job has ended, in seconds since 1970; None: it has not."""
        if job.state not in {FINISHED, FAILED}:
            return None
        try:
            return (self.store.folder(job.id) / "log").stat().st_mtime
        except OSError:
            return job.submitted_s

    def _take(self, form: VideoForm, folder: Path) -> dict[str, Any]:
        """Write and check the files of a form; returns the job, whose files have no folder yet."""
        settings = self.settings
        load_portrait(form.portrait, max_pixels=settings.max_pixels, formats=FORMATS)
        (folder / "portrait").write_bytes(form.portrait)
        sent, voice = folder / "sent", folder / "voice"
        with sent.open("wb") as file:
            shutil.copyfileobj(form.voice, file)
        if form.seconds is None:
            sent.replace(voice)
        else:
            cut_sound(sent, voice, seconds=min(form.seconds, settings.max_video_s))
            sent.unlink()
        seconds = sound_length_s(voice, max_s=settings.max_video_s)
        signed = {} if settings.signing is None else {"sign": settings.signing.as_job()}
        return {
            **self.made_with,
            "image": "portrait", "audio": "voice", "output": VIDEO,
            "sha256": {name: input_sha256(folder / name) for name in ("portrait", "voice")},
            "prompt": form.prompt, "prompt_is_file": False, "options": asdict(form.options),
            "segment_s": settings.segment_s, **JOB_DEFAULTS, "anonymous": True, "seconds": seconds, **signed,
        }  # fmt: skip

    # The thread that makes them.

    def start(self, model: Any) -> None:
        """Begin to make videos with the model."""
        self._thread = threading.Thread(
            target=self._run, args=(model,), name="lipcast-videos", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the block in flight; the video goes on with the next server."""
        self._stop.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(_LAST_BLOCK_S)

    def make_room(self) -> None:
        """Leave the memory of the next segment free for a while: a live session was refused."""
        self._refused_until = time.monotonic() + _REFUSED_S

    def _run(self, model: Any) -> None:
        renderer = _Yielding(self, self._make_renderer(model, self._on_block))
        while not self._stop.is_set():
            try:
                self._forget_old()
                lease = self._next()
                if lease is not None:
                    self._make(lease, renderer)
                    continue
            except LipcastError as error:  # a disk that is full, say
                log_event("videos cannot be made", level=logging.ERROR, error=str(error))
            self._woken.wait(_LOOK_S)
            self._woken.clear()

    def _next(self) -> Lease | None:
        """Lease the first job of this model."""
        for job in self.store.jobs((WAITING, RUNNING)):
            is_ours = all(job.request[name] == self.made_with[name] for name in _SAME_PICTURES)
            if is_ours and (lease := self.store.lease(job.id)) is not None:
                return lease
        return None

    def _make(self, lease: Lease, renderer: SegmentRenderer) -> None:
        self._lease, name = lease, lease.job.id
        log_event("video begun", video=name)
        try:
            run_leased(self.store, lease, renderer, log=lambda _: None, stop=self._stop)
            log_event("video finished", video=name)
        except KeyboardInterrupt:
            log_event("video put back", video=name)
        except LipcastError as error:
            log_event("video ended early", level=logging.WARNING, video=name, error=str(error))
        except Exception as error:
            log_event("video failed", level=logging.ERROR, video=name, error=repr(error))
            self.store.fail(lease, "the server has failed at this video; its log says why")
        finally:
            self._lease = None
            lease.release()
            with suppress(InputError, UsageError):
                if self.store.job(name).state == CANCELLED:
                    self.store.remove(name)

    def on_segment(self) -> None:
        """Begin a segment: wait while its memory is left to live sessions."""
        self._num_frames = 0
        self.rest(max(0.0, self._refused_until - time.monotonic()))

    def _on_block(self, num_frames: int) -> None:
        self._num_frames += num_frames
        self.rest(0)
        end = time.monotonic() + _GIVE_WAY_S
        while self.is_speaking() and time.monotonic() < end and not self._stop.is_set():
            self._stop.wait(_GIVE_WAY_LOOK_S)

    def rest(self, seconds: float) -> None:
        """Wait. Raises KeyboardInterrupt when the server ends, CancelledError for a deleted video."""
        if self._stop.wait(seconds):
            raise KeyboardInterrupt
        assert self._lease is not None
        self.store.check(self._lease)

    def _forget_old(self) -> None:
        """Remove what was kept long enough, and what was left behind by a server that was killed."""
        now, keep_s = time.time(), self.settings.keep_videos_s
        for job in self.store.jobs((FINISHED, FAILED, CANCELLED)):
            ended = self.ended_s(job)
            if ended is None or ended + keep_s < now:
                with suppress(UsageError, InputError):
                    self.store.remove(job.id)
        for folder in self.store.workspace.glob(f"{_INCOMING}*"):
            with suppress(OSError):
                if folder.stat().st_mtime + _ABANDONED_S < now:
                    shutil.rmtree(folder)


class _Yielding:
    """A renderer that leaves memory to live sessions, and waits where there is none beside them."""

    width = 1

    def __init__(self, queue: VideoQueue, renderer: SegmentRenderer) -> None:
        self._queue, self._renderer = queue, renderer

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        return self._renderer.estimate(request)

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        while True:
            self._queue.on_segment()
            try:
                return self._renderer.render(request, task)
            except AdmissionError:
                self._queue.on_refused()
                self._queue.rest(_GIVE_WAY_S)


def _name(key: str | None) -> str:
    """Return a new name, or the one that follows from an idempotency key."""
    if key is None:
        return f"video_{secrets.token_hex(12)}"
    return f"video_{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def _same(known: Job, request: Mapping[str, Any]) -> Job:
    """Return the job that a key was used for. Raises UsageError where it was another request."""
    for field in ("prompt", "options", "seconds"):
        if json.loads(json.dumps(request[field])) != known.request[field]:
            raise UsageError(f"Idempotency-Key: was used with another {field}; choose another key")
    if sorted(request["sha256"].values()) != sorted(known.request["sha256"].values()):
        raise UsageError("Idempotency-Key: was used with other files; choose another key")
    return known


def _placed(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a job whose files are in a folder."""
    paths = {name: str(folder / request[name]) for name in ("image", "audio", "output")}
    hashes = {str(folder / name): sha256 for name, sha256 in request["sha256"].items()}
    return {**request, **paths, "sha256": hashes}
