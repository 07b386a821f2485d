"""One video being generated: an iterator of `FrameBlock`s.

Input: the parts that a backend has made, a timeline of sound. Output: frame blocks in order, each as soon as
it is decoded. A step takes the next tick of the schedule, gives new blocks their speech features, runs the
tick and hands clean blocks to the decoder; frames that a GPU decodes beside the ticks are collected
while the next tick computes. State: what is in flight; nothing grows with the length. A session that
failed, was closed or is dropped gives its memory back and makes no more frames.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.closing import Closing
from lipcast.config.schedule import Scheduler, Tick, Unit
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.decode import DecodeQueue, PendingFrames
from lipcast.engine.executor import Executor
from lipcast.engine.frames import BlockTimings, FrameBlock
from lipcast.engine.retry import Recovery, first_line, retry_on_oom
from lipcast.engine.snapshot import BlockSnapshot, SessionSnapshot, SnapshotRecorder
from lipcast.engine.sound_timeline import Timeline
from lipcast.engine.stopwatch import Stopwatch
from lipcast.errors import CancelledError, SessionFailedError, UsageError

_Result = TypeVar("_Result")


class Decoder(Protocol):
    """Decodes latents to frames, block by block."""

    def submit(self, latent_CFHW: Tensor) -> PendingFrames:
        """Begin to decode the next block."""


def _hold_nothing() -> None:
    """Release parts that hold nothing."""


@dataclass(frozen=True, slots=True)
class SessionParts:
    """Everything that a session runs on, as built by a backend."""

    spec: VideoSpec
    executor: Executor
    decoder: Decoder
    snapshot: SessionSnapshot | None = None
    """The snapshot that the parts go on from."""
    recovery: Recovery | None = None
    """Called when memory runs out; without it the error ends the session."""
    describe: Callable[[], dict[str, Any]] | None = None
    """Returns what the report says of the devices."""
    release: Callable[[], None] = _hold_nothing
    """Gives all memory back; may be called again."""
    set_context: Callable[[Tensor], None] | None = None
    """Changes the text embedding [T, C]; None where that is not possible."""
    pose_latents: Callable[[int], Tensor] | None = None
    """Returns the pose latents [C, F, H, W] of a block; None without a pose."""
    device_lock: AbstractContextManager[Any] = field(default_factory=threading.RLock)
    """Held while the device computes, where sessions of several threads share its weights."""


class ReplanRequired(Exception):  # noqa: N818 (a signal between recovery and session, not an error)
    """Drop the blocks in flight and continue the video from its last finished block."""

    def __init__(self, make: Callable[[SessionSnapshot | None], SessionParts]) -> None:
        super().__init__("the video goes on with other settings")
        self.make = make


class SessionState(Enum):
    """State of a session's life."""

    OPEN = "open"
    FAILED = "failed"
    CLOSED = "closed"


class Session(Closing):
    """An iterator of frame blocks. `cancel` works from any thread; use as a context manager or `close`."""

    def __init__(self, parts: SessionParts, timeline: Timeline, *, device: torch.device) -> None:
        """With a snapshot in `parts` the first block is `snapshot.next_block`."""
        self.spec, self.state = parts.spec, SessionState.OPEN
        self._executor, self._decoder = parts.executor, parts.decoder
        self._recovery, self._describe = parts.recovery, parts.describe
        self._set_context, self._pose_latents = parts.set_context, parts.pose_latents
        self._poses: dict[int, Tensor] = {}
        """Pose latents of the blocks that are not finished."""
        self._timeline = timeline
        first_block = 0 if parts.snapshot is None else parts.snapshot.next_block
        self._scheduler = _scheduler(parts.spec, first_block)
        self._features: dict[int, Tensor] = {}
        """Speech features of the blocks that are not finished."""
        self._recorder = _recorder(parts)
        self.on_latent: Callable[[int, Tensor], None] | None = None
        """Called with (block, clean latents [C, F, H, W]) before they are decoded: for measurement."""
        self._pending = DecodeQueue()
        self._ready: deque[FrameBlock] = deque()
        self._num_decoded = first_block
        """Blocks given to the decoder, all before the first included; the last may be pending."""
        self._num_frames_made = first_block * parts.spec.video_frames_per_block
        self._watch = Stopwatch(device)
        self._cancelled = threading.Event()
        self._failure = ""
        self._lock, self._device_lock = threading.RLock(), parts.device_lock
        # Also when the session is dropped without `close`.
        self._release = weakref.finalize(self, parts.release)
        self._release.atexit = False

    @property
    def num_frames(self) -> int | None:
        """Length of the whole video in frames; None while the sound's end is not known."""
        return self._timeline.num_frames

    @property
    def num_blocks(self) -> int | None:
        """Blocks of the whole video; None while the sound's end is not known."""
        return self._timeline.num_blocks

    @property
    def snapshot(self) -> SessionSnapshot | None:
        """Snapshot that another session can continue from; None before the first finished block."""
        return self._recorder.snapshot()

    @property
    def executor(self) -> Executor:
        """Executor that computes the ticks of this session."""
        return self._executor

    @property
    def device_lock(self) -> AbstractContextManager[Any]:
        """Held while the device computes."""
        return self._device_lock

    def __iter__(self) -> Iterator[FrameBlock]:
        return self

    def __next__(self) -> FrameBlock:
        """Return the next block; wait for sound if necessary.

        Raises CancelledError after `cancel` or `close`, SessionFailedError after an earlier error.
        """
        while not self._ready:
            if not self._step(wait=True):
                raise StopIteration
        return self._ready.popleft()

    def ready(self) -> Iterator[FrameBlock]:
        """Yield the blocks that the sound so far allows, without waiting for more."""
        while self._ready or self._step(wait=False):
            yield from self.take()

    def take(self) -> Iterator[FrameBlock]:
        """Yield the blocks that are finished, without computing any. Raises as iterating does."""
        while self._ready:
            yield self._ready.popleft()
        if self.state is SessionState.FAILED:
            self._check_running()

    def set_context(self, context_TC: Tensor) -> None:
        """Change the text embedding [T, C] for the blocks that begin from now on.

        Raises UsageError where the backend cannot change it.
        """
        if self._set_context is None:
            raise UsageError(
                "the prompt cannot change while several devices share the weights; leave out --dit_fsdp, or "
                "give the prompts beforehand"
            )
        with self._lock, self._device_lock:
            self._check_running()
            self._set_context(context_TC)

    def cancel(self) -> None:
        """Stop before the next tick; whoever iterates gets CancelledError."""
        self._cancelled.set()

    def close(self) -> None:
        """Free everything that the session holds, on the device and in pinned memory. Safe to call again.

        From another thread it waits for the tick that is being computed.
        """
        with self._lock:
            if self.state is SessionState.OPEN:
                self.state = SessionState.CLOSED
            self._drop()

    def fail(self, error: BaseException) -> None:
        """End the session because of an error: its memory is given back, and iterating raises."""
        if self.state is SessionState.OPEN:
            self.state, self._failure = SessionState.FAILED, first_line(error)
        self._drop()

    def report(self) -> dict[str, Any]:
        """Return what was done so far: blocks, frames, seconds by part."""
        report: dict[str, Any] = {
            "num_blocks": self._num_decoded - len(self._pending),
            "num_frames": self._num_frames_made,
            "seconds": self._watch.totals(),
        }
        if self._describe is not None:
            report.update(self._describe())
        return report

    # One tick: begun, computed (here, or by an Engine beside other sessions), finished.

    def begin_tick(self) -> Tick:
        """Return the next tick whose sound has come, its blocks ready to be computed; may be empty.

        Empty also where memory ran out and the session goes on with another executor.
        """
        self._check_running()
        begun: list[Unit] = []  # stays empty where the session goes on with other settings
        with self._guarded():
            tick = self._next_tick(wait=False)
            self._start(tick)
            begun.extend(tick)
        return tuple(begun)

    def run_tick(self, tick: Tick) -> None:
        """Compute a tick that `begin_tick` gave, and finish it."""
        with self._guarded():
            with self._watch.part("dit_s"):
                finished = self._retry_on_oom(partial(self._executor.run, tick))
            self._finish(tick, finished)

    def finish_tick(self, tick: Tick, finished: list[tuple[int, Tensor]]) -> None:
        """Take over the blocks that a tick computed elsewhere has made clean."""
        with self._guarded():
            self._finish(tick, finished)

    def collect(self, *, wait: bool) -> bool:
        """Take over decoded frames in order, all or those that are ready; False if there are none."""
        collected = False
        for block, frames, decode_s in self._pending.take(wait=wait):
            self._watch.add("vae_s", decode_s)
            self._give_out(block, frames)
            collected = True
        return collected

    def _step(self, *, wait: bool) -> bool:
        """Run one tick. False where nothing can be done: the end, or no sound yet."""
        self._check_running()
        with self._guarded():
            self.collect(wait=False)
            if self._is_done():
                return self.collect(wait=True) or bool(self._ready)
            if self._ready:
                return True
            is_busy = bool(self._pending) or self._executor.num_outstanding > 0
            tick = self._next_tick(wait=wait and not is_busy)
            self._start(tick)
            if not tick and not self._executor.num_outstanding:
                return self.collect(wait=True)
            self.run_tick(tick)
        return True

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep other threads from closing the session; replan, or end it, where the body says so."""
        with self._lock:
            try:
                yield
            except ReplanRequired as signal:
                self._replan(signal)
            except BaseException as error:
                self.fail(error)
                raise

    def _next_tick(self, *, wait: bool) -> Tick:
        """Return what can be run with the sound that has come."""
        tick = self._scheduler.ready(self._timeline.num_blocks)
        starting = [unit for unit in tick if unit.step == 0]
        for unit in starting:
            if not self._fetch_features(unit.block, wait=wait and len(tick) == 1):
                tick = tuple(other for other in tick if other != unit)
        return tick

    def _check_running(self) -> None:
        if self._cancelled.is_set():
            self.close()
            raise CancelledError("the session was cancelled")
        if self.state is SessionState.FAILED:
            raise SessionFailedError(f"the session has failed: {self._failure}; open a new one")
        if self.state is SessionState.CLOSED:
            raise CancelledError("the session is closed; open a new one")

    def _is_done(self) -> bool:
        total = self._timeline.num_blocks
        return total is not None and self._num_decoded >= total

    def _fetch_features(self, block: int, *, wait: bool) -> bool:
        """Fetch the features of a block; False if they have not come, or lie past the end of the sound."""
        if block in self._features:
            return True
        with self._watch.part("speech_s"):
            call = partial(self._timeline.features, block, wait=wait)
            features = retry_on_oom(call, self._recovery, self._num_decoded)
        if features is not None:
            self._features[block] = features
        return features is not None

    def _start(self, tick: Tick) -> None:
        """Give the executor the speech features of the blocks that begin with this tick."""
        with self._watch.part("dit_s"):
            for block in [unit.block for unit in tick if unit.step == 0]:
                start = partial(self._executor.start, block, self._features[block])
                if self._pose_latents is not None:
                    self._poses[block] = self._retry_on_oom(partial(self._pose_latents, block))
                    start = partial(start, pose_CFHW=self._poses[block])
                self._retry_on_oom(start)

    def _finish(self, tick: Tick, finished: list[tuple[int, Tensor]]) -> None:
        self._scheduler.advance(tick)
        # The tick computes while the frames of the block before are waited for.
        self.collect(wait=True)
        for block, latent in finished:
            self._decode(block, latent)
        self.collect(wait=False)

    def _retry_on_oom(self, call: Callable[[], _Result]) -> _Result:
        with self._device_lock:
            return retry_on_oom(call, self._recovery, self._num_decoded)

    def _replan(self, signal: ReplanRequired) -> None:
        """Go on from the last finished block."""
        try:
            self.collect(wait=True)
            with self._device_lock:
                found = signal.make(self._recorder.snapshot())
        except BaseException as error:
            self.fail(error)
            raise
        self.spec, self._executor, self._decoder = found.spec, found.executor, found.decoder
        self._recorder, self._pose_latents = _recorder(found), found.pose_latents
        self._scheduler = _scheduler(found.spec, self._num_decoded)

    def _decode(self, block: int, latent: Tensor) -> None:
        assert block == self._num_decoded, "blocks become clean in order"
        if self.on_latent is not None:
            self.on_latent(block, latent)
        pending = self._retry_on_oom(partial(self._decoder.submit, latent))
        inputs = self._executor.inputs_of(block)
        pose = self._poses.pop(block, None)
        self._recorder.add(BlockSnapshot(latent, self._features.pop(block), inputs, pose))
        self._num_decoded += 1
        self._pending.add(block, pending)

    def _give_out(self, block: int, frames: NDArray[Any]) -> None:
        total = self._timeline.num_frames
        kept = len(frames) if total is None else min(len(frames), total - self._num_frames_made)
        self._num_frames_made += kept
        self._ready.append(
            FrameBlock(
                index=block,
                frames=frames[:kept],
                audio=self._timeline.take_samples(kept),
                sample_rate=self._timeline.sample_rate,
                timings=BlockTimings(**self._watch.lap()),
            )
        )

    def _drop(self) -> None:
        self._pending.clear()
        if self.state is SessionState.CLOSED:
            self._ready.clear()
        self._features.clear()
        self._poses.clear()
        self._pose_latents = None  # it may have a file open
        self._release()


def _scheduler(spec: VideoSpec, first_block: int) -> Scheduler:
    return Scheduler(spec.order, max_lanes=spec.max_lanes, first_block=first_block)


def _recorder(parts: SessionParts) -> SnapshotRecorder:
    recorder = SnapshotRecorder(parts.spec.geometry.window, parts.spec.geometry.latents_per_block)
    if parts.snapshot is not None:
        recorder.resume(parts.snapshot)
    return recorder
