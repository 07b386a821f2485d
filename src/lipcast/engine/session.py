"""One video being made: an iterator of `FrameBlock`s.

Input: a spec, an executor, a decoder, a timeline of sound. Output: frame blocks in order, each as soon
as its latents are clean. A step takes the next tick of the schedule, gives new blocks their voice, runs
the tick and has decoded what became clean; frames that are decoded beside the ticks are collected after
the next tick, or at once where no tick can be run. State: what is in flight; nothing grows with the length.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.schedule import Scheduler, Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.decode import PendingFrames
from lipcast.engine.executor import Executor
from lipcast.engine.frames import BlockTimings, FrameBlock
from lipcast.engine.snapshot import BlockSnapshot, SessionSnapshot, SnapshotRecorder
from lipcast.engine.sound_timeline import AudioTimeline
from lipcast.engine.stopwatch import Stopwatch
from lipcast.errors import CancelledError

_Result = TypeVar("_Result")


class Decoder(Protocol):
    """Whatever makes frames of latents, block by block."""

    def submit(self, latent_CFHW: Tensor) -> PendingFrames:
        """Begin to decode the next block."""


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a video goes on with."""

    spec: VideoSpec
    executor: Executor
    decoder: Decoder
    snapshot: SessionSnapshot | None


class ReplanRequired(Exception):  # noqa: N818 (a signal between recovery and session, not an error)
    """What is in flight is given up; the video goes on from its last finished block."""

    def __init__(self, make: Callable[[SessionSnapshot | None], SessionParts]) -> None:
        super().__init__("the video goes on with other settings")
        self.make = make


class Recovery(Protocol):
    """Makes room when memory runs out."""

    def __call__(self, error: torch.OutOfMemoryError, block: int) -> None:
        """Return when the call that failed can be made again; raise Restart to go on otherwise.

        `block` is the first unfinished one. Raises MemoryBudgetError where nothing is left to do.
        """


def retry_on_oom(call: Callable[[], _Result], recovery: Recovery | None, block: int) -> _Result:
    """Make a call again as long as room can be made for it."""
    while True:
        try:
            return call()
        except torch.OutOfMemoryError as error:
            if recovery is None:
                raise
            recovery(error, block)


class Session:
    """Iterate it; `cancel` it from any thread; `close` it, or use it as a context manager."""

    def __init__(
        self,
        spec: VideoSpec,
        executor: Executor,
        decoder: Decoder,
        timeline: AudioTimeline,
        *,
        device: torch.device,
        snapshot: SessionSnapshot | None = None,
        recovery: Recovery | None = None,
        describe: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """With a `snapshot` the first block is `snapshot.next_block`, and all parts go on from it.

        `recovery` is asked when memory runs out; without it the error ends the session.

        `describe` gives what the report says of the devices.
        """
        self.spec = spec
        self._executor = executor
        self._decoder = decoder
        self._timeline = timeline
        first_block = 0 if snapshot is None else snapshot.next_block
        self._scheduler = _scheduler(spec, first_block)
        self._features: dict[int, Tensor] = {}
        """Speech features of the blocks that are not finished."""
        self._recovery, self._describe = recovery, describe
        self._recorder = _recorder(spec)
        if snapshot is not None:
            self._recorder.resume(snapshot)
        self.on_latent: Callable[[int, Tensor], None] | None = None
        """Called with (block, clean latents [C, F, H, W]) before they are decoded: for measurement."""
        self._pending: deque[tuple[int, PendingFrames]] = deque()
        self._ready: deque[FrameBlock] = deque()
        self._num_decoded = first_block
        """Blocks given to the decoder, all before the first included; the last may be pending."""
        self._num_frames_made = first_block * spec.video_frames_per_block
        self._watch = Stopwatch(device)
        self._cancelled = threading.Event()
        self._closed = False

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
        """What another session can go on from; None before the first finished block."""
        return self._recorder.snapshot()

    def __iter__(self) -> Iterator[FrameBlock]:
        return self

    def __next__(self) -> FrameBlock:
        """The next block; waits for sound if need be. Raises CancelledError after `cancel`."""
        while not self._ready:
            if not self._step(wait=True):
                raise StopIteration
        return self._ready.popleft()

    def ready(self) -> Iterator[FrameBlock]:
        """The blocks that can be made from the sound there is, without waiting for more."""
        while self._ready or self._step(wait=False):
            while self._ready:
                yield self._ready.popleft()

    def cancel(self) -> None:
        """Stop before the next tick; whoever iterates gets CancelledError."""
        self._cancelled.set()

    def close(self) -> None:
        """Free what the session holds. May be called again."""
        self._closed = True
        self._pending.clear()
        self._ready.clear()
        self._features.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def report(self) -> dict[str, Any]:
        """What was done so far: blocks, frames, seconds by part."""
        report: dict[str, Any] = {
            "num_blocks": self._num_decoded - len(self._pending),
            "num_frames": self._num_frames_made,
            "seconds": self._watch.totals(),
        }
        if self._describe is not None:
            report.update(self._describe())
        return report

    def _step(self, *, wait: bool) -> bool:
        """Run one tick. False where nothing can be done: the end, or no sound yet."""
        self._check_running()
        if self._is_done():
            return self._collect(wait=True)
        is_busy = bool(self._pending) or self._executor.num_outstanding > 0
        tick = self._next_tick(wait=wait and not is_busy)
        if not tick and not self._executor.num_outstanding:
            return self._collect(wait=True)
        try:
            self._run(tick)
        except ReplanRequired as restart:
            self._restart(restart)
        return True

    def _next_tick(self, *, wait: bool) -> Tick:
        """What can be run with the sound that has come; waits for sound if nothing else is to be run."""
        tick = self._scheduler.ready(self._timeline.num_blocks)
        starting = [unit for unit in tick if unit.step == 0]
        for unit in starting:
            if not self._fetch_features(unit.block, wait=wait and len(tick) == 1):
                tick = tuple(other for other in tick if other != unit)
        self._scheduler.advance(tick)
        return tick

    def _check_running(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("the session was cancelled")
        if self._closed:
            raise CancelledError("the session is closed; open a new one")

    def _is_done(self) -> bool:
        total = self._timeline.num_blocks
        return total is not None and self._num_decoded >= total

    def _fetch_features(self, block: int, *, wait: bool) -> bool:
        """Fetch the voice of a block; False if it has not come, or lies past the end of the sound."""
        if block in self._features:
            return True
        with self._watch.part("speech_s"):
            features = self._timeline.features(block, wait=wait)
        if features is not None:
            self._features[block] = features
        return features is not None

    def _run(self, tick: Tick) -> None:
        with self._watch.part("dit_s"):
            for unit in tick:
                if unit.step == 0:
                    features = self._features[unit.block]
                    self._retry_on_oom(partial(self._executor.start, unit.block, features))
            finished = self._retry_on_oom(partial(self._executor.run, tick))
        self._collect(wait=True)
        for block, latent in finished:
            self._decode(block, latent)
        self._collect(wait=False)

    def _retry_on_oom(self, call: Callable[[], _Result]) -> _Result:
        return retry_on_oom(call, self._recovery, self._num_decoded)

    def _restart(self, restart: ReplanRequired) -> None:
        """Go on from the last finished block."""
        self._collect(wait=True)
        found = restart.make(self._recorder.snapshot())
        self.spec, self._executor, self._decoder = found.spec, found.executor, found.decoder
        self._recorder = _recorder(found.spec)
        if found.snapshot is not None:
            self._recorder.resume(found.snapshot)
        self._scheduler = _scheduler(found.spec, self._num_decoded)

    def _decode(self, block: int, latent: Tensor) -> None:
        assert block == self._num_decoded, "blocks become clean in order"
        if self.on_latent is not None:
            self.on_latent(block, latent)
        with self._watch.part("vae_s"):
            pending = self._retry_on_oom(partial(self._decoder.submit, latent))
        inputs = self._executor.inputs_of(block)
        self._recorder.add(BlockSnapshot(latent, self._features.pop(block), inputs))
        self._num_decoded += 1
        self._pending.append((block, pending))

    def _collect(self, *, wait: bool) -> bool:
        """Take over decoded frames in order, all or those that are ready; False if there are none."""
        collected = False
        while self._pending and (wait or self._pending[0][1].is_ready):
            block, pending = self._pending.popleft()
            with self._watch.part("vae_s"):
                frames = pending.collect()
            self._give_out(block, frames)
            collected = True
        return collected

    def _give_out(self, block: int, frames: NDArray[np.uint8]) -> None:
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


def _scheduler(spec: VideoSpec, first_block: int) -> Scheduler:
    return Scheduler(spec.order, max_lanes=spec.max_lanes, first_block=first_block)


def _recorder(spec: VideoSpec) -> SnapshotRecorder:
    return SnapshotRecorder(spec.geometry.window, spec.geometry.latents_per_block)
