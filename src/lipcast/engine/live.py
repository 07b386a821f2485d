"""A live session: sound goes in as it is spoken, pictures with exactly their sound come out.

    idle ──push──> listening ──first block──> speaking ──end──> draining ──> idle
                                                           `──finish──> closed

Input: sound, interruptions, prompts, from any thread. Output: `AVFrame`s in order, for one consumer. The
pictures are those of an ordinary `Session`, which a `LiveRunner` advances. Invariants: what waits is bounded,
and what is dropped is counted; no frame of an older epoch is given out after `interrupt`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.closing import Closing
from lipcast.config.models import VIDEO_FPS
from lipcast.engine.frames import FrameBlock
from lipcast.engine.live_timeline import LiveTimeline
from lipcast.engine.live_types import AVFrame, LiveLimits, LiveState, LiveStats
from lipcast.engine.session import Session
from lipcast.errors import CancelledError, SessionFailedError, UsageError

_Result = TypeVar("_Result")


class LiveSession(Closing):
    """Push sound, take frames. Made by `Lipcast.live`; a context manager."""

    def __init__(
        self,
        session: Session,
        timeline: LiveTimeline,
        *,
        encode_prompt: Callable[[str], Tensor],
        limits: LiveLimits | None = None,
        idle: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`idle`: show an idle face where nothing is said. `clock`: seconds, for `patience_s`."""
        self.inner, self._timeline = session, timeline
        self.limits = limits or LiveLimits()
        self.sample_rate = timeline.sample_rate
        self._encode_prompt, self._idle, self._clock = encode_prompt, idle, clock
        self._changed = timeline.changed
        self._frames: deque[AVFrame] = deque()
        """They are numbered when they are given out."""
        self._listeners: list[Callable[[], None]] = []
        self.wake_runner: Callable[[], None] | None = None
        """Called when something has changed that may allow a tick."""
        self._block_frames = session.spec.video_frames_per_block
        self._is_paused = self._is_finishing = self._has_ended = False
        self._failure = ""
        self._num_made = self._num_given = self._num_idle_dropped = self._num_interrupted = 0
        self._num_interrupts = self._num_utterances = 0
        self._last_push: dict[int, float] = {}
        """Seconds of the clock, by character."""
        self._utterance_began: float | None = None
        self._first_frame_s: float | None = None
        self._block_s: float | None = None

    # What a user of the session does.

    def push_audio(self, samples: NDArray[Any], *, sample_rate: int, character: int = 0) -> int:
        """Append float (-1..1) or int16 PCM, [n] or [n, channels]; returns how many samples were accepted.

        `character`: who says it, counted from 0 in the order in which the session was given them.
        Those that find no room (`LiveLimits.max_pending_s`) are dropped and counted.
        Raises InputError for other types and for NaN, CancelledError once the session is closed,
        UsageError after `finish` and for a sampling rate outside of 1 to 768 kHz.
        """
        with self._notifying():
            self._check_open()
            if self._is_finishing:
                raise UsageError(
                    "push_audio: no sound is accepted after finish; open a new session"
                )
            now, was_waiting = self._clock(), self._timeline.has_sound
            accepted = self._voice(character).push(samples, sample_rate)
            if accepted:
                self._last_push[character] = now
                self._utterance_began = self._utterance_began if was_waiting else now
            return accepted

    def end_utterance(self, *, character: int | None = None) -> None:
        """Nothing more is said for now: the rest is spoken at once, and the face is idle after it.

        `character`: only by this one; None: by all of them.
        """
        with self._notifying():
            (self._timeline if character is None else self._voice(character)).end_utterance()

    def interrupt(self) -> int:
        """Drop all sound and all pictures that wait, and begin a new epoch; returns its number.

        The next block that begins is silent, so that the mouth closes.
        """
        with self._notifying():
            self._check_open()
            epoch = self._timeline.interrupt()
            self._num_interrupts, self._utterance_began = self._num_interrupts + 1, None
            self._num_interrupted += len(self._frames)
            self._frames.clear()
            return epoch

    def set_prompt(self, prompt: str) -> None:
        """Change the prompt for the blocks that begin from now on. Raises UsageError with sharded weights."""
        self.inner.set_context(self._encode_prompt(prompt))

    def pause(self) -> None:
        """Make and give out no frames until `resume`; sound may be pushed meanwhile."""
        with self._notifying():
            self._is_paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._notifying():
            self._is_paused = False
            self._last_push = dict.fromkeys(self._last_push, self._clock())

    def finish(self) -> None:
        """End the session once everything that was pushed has been spoken. May be called again."""
        with self._notifying():
            self._timeline.end_utterance()
            self._is_finishing = True

    def close(self) -> None:
        """End now and free all memory; whoever waits for frames gets no more. May be called again."""
        with self._notifying():
            self._has_ended = True
            self._frames.clear()
        self.inner.cancel()
        self.inner.close()

    @property
    def state(self) -> LiveState:
        """What the session is doing."""
        with self._changed:
            if self._has_ended and not self._frames:
                return LiveState.CLOSED
            if self._is_finishing or self._has_ended:
                return LiveState.DRAINING
            shown = any(frame.is_speech for frame in self._frames)
            if shown or self._timeline.is_speaking:
                is_open = self._timeline.has_open_utterance
                return LiveState.SPEAKING if is_open else LiveState.DRAINING
            return LiveState.LISTENING if self._timeline.has_sound else LiveState.IDLE

    @property
    def epoch(self) -> int:
        """Number of interruptions so far."""
        return self._timeline.epoch

    @property
    def has_unspoken(self) -> bool:
        """Whether a frame with sound that was pushed is still to be given out."""
        with self._changed:
            return self._timeline.has_unshown or any(frame.is_heard for frame in self._frames)

    @property
    def has_ended(self) -> bool:
        """Whether no more frames are made."""
        return self._has_ended

    def stats(self) -> LiveStats:
        """Return what was done so far."""
        with self._changed:
            return LiveStats(
                state=self.state,
                epoch=self._timeline.epoch,
                num_frames_made=self._num_made,
                num_frames_given=self._num_given,
                num_frames_queued=len(self._frames),
                num_idle_dropped=self._num_idle_dropped,
                num_interrupted_dropped=self._num_interrupted,
                pending_s=self._timeline.pending_s,
                dropped_sound_s=sum(voice.dropped_s for voice in self._timeline.voices),
                num_interrupts=self._num_interrupts,
                num_utterances=self._num_utterances,
                first_frame_s=self._first_frame_s,
                block_s=self._block_s,
            )

    # Frames out: one by one, or all that are ready; waiting in a thread or in an event loop.

    def poll(self, max_frames: int = 1) -> list[AVFrame]:
        """Return the frames that are ready, of one epoch and kind, without waiting; none is an empty list.

        Raises SessionFailedError where the session was ended by an error.
        """
        return self._poll(max_frames)[0]

    def _poll(self, max_frames: int) -> tuple[list[AVFrame], bool]:
        """Return what `poll` returns, and whether the session had ended at that moment.

        Only frames that were taken are a change: whoever waits for some must not wake itself by looking.
        """
        with self._changed:
            if self._failure:
                raise SessionFailedError(f"the session has failed: {self._failure}; open a new one")
            found: list[AVFrame] = []
            while self._frames and len(found) < max_frames and not self._is_paused:
                frame = self._frames[0]
                if found and (found[0].epoch, found[0].is_speech) != (frame.epoch, frame.is_speech):
                    break
                found.append(replace(self._frames.popleft(), index=self._num_given))
                self._num_given += 1
            has_ended = self._has_ended
        if found:
            self._notify()
        return found, has_ended

    def next_kind(self) -> tuple[int, bool] | None:
        """Return the epoch of the next frame, and whether it speaks; None where none is ready."""
        with self._changed:
            if not self._frames or self._is_paused:
                return None
            return self._frames[0].epoch, self._frames[0].is_speech

    def __iter__(self) -> Iterator[AVFrame]:
        """Yield the frames as they are made; ends after `finish` or `close`."""
        while True:
            with self._changed:
                self._changed.wait_for(self._can_poll)
            found, has_ended = self._poll(1)
            if not found and has_ended:
                return
            yield from found

    async def next_frames(self, max_frames: int = 1) -> list[AVFrame]:
        """Wait in an event loop for frames of one epoch and kind; an empty list after the end."""

        def take() -> list[AVFrame] | None:
            found, has_ended = self._poll(max_frames)
            return found if found or has_ended else None

        return await self.wait_for(take)

    async def wait_for(self, look: Callable[[], _Result | None]) -> _Result:
        """Wait in an event loop until `look`, called after every change, returns something."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may have been closed
                loop.call_soon_threadsafe(changed.set)

        with self.listening(wake):
            while (found := look()) is None:
                await changed.wait()
                changed.clear()
            return found

    async def __aiter__(self) -> AsyncIterator[AVFrame]:
        """Yield the frames as they are made, in an event loop."""
        while found := await self.next_frames():
            yield found[0]

    @contextmanager
    def listening(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback`, from any thread, whenever something has changed."""
        with self._changed:
            self._listeners.append(callback)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(callback)

    # What the runner does.

    def wants_tick(self) -> bool:
        """Whether the session may be advanced; decides whether a block of silence may begin."""
        with self._changed:
            if self._has_ended or self._is_paused:
                return False
            waiting = len(self._frames) + self._timeline.num_in_flight * self._block_frames
            self._end_where_nothing_comes(waiting)
            wants_idle = self._idle and not self._is_finishing
            self._timeline.idle_allowed = wants_idle and waiting < self._block_frames
            return waiting < self.limits.max_frames_ahead or self._timeline.num_in_flight > 0

    def collect(self) -> None:
        """Take over the blocks that the session has finished."""
        try:
            for block in self.inner.take():
                self._add(block)
        except CancelledError as error:
            self.fail(error)
        if self._is_complete():
            with self._notifying():
                self._has_ended = True
            self.inner.close()

    def fail(self, error: Exception) -> None:
        """End the session because of an error; taking frames raises it."""
        with self._notifying():
            if not self._has_ended:
                self._failure, self._has_ended = str(error), True
                self._frames.clear()

    def _is_complete(self) -> bool:
        with self._changed:
            waits = self._timeline.has_sound or self._timeline.num_in_flight > 0
            return self._is_finishing and not self._has_ended and not waits

    def _add(self, block: FrameBlock) -> None:
        """Queue the frames of a block; those of an earlier epoch are dropped, and idle ones before speech."""
        with self._notifying():
            made = self._timeline.take_made()
            self._num_made += len(block.frames)
            timings = block.timings
            self._block_s = timings.speech_s + timings.dit_s + timings.vae_s
            if made.epoch != self._timeline.epoch:
                self._num_interrupted += len(block.frames)
                return
            if made.is_speech:
                self._drop_idle()
                self._num_utterances += made.begins_utterance
                if self._utterance_began is not None:
                    self._first_frame_s = self._clock() - self._utterance_began
                    self._utterance_began = None
            sounds = np.split(block.audio, len(block.frames))
            num_heard = len(block.frames) - made.num_fillers
            self._frames.extend(
                AVFrame(
                    picture, sound, self.sample_rate, 0, made.epoch, made.is_speech, index >= num_heard,
                    made.spoken_s(index + 1),
                )
                for index, (picture, sound) in enumerate(zip(block.frames, sounds, strict=True))
            )  # fmt: skip

    def _drop_idle(self) -> None:
        kept = [frame for frame in self._frames if frame.is_speech]
        self._num_idle_dropped += len(self._frames) - len(kept)
        self._frames = deque(kept)

    def _end_where_nothing_comes(self, waiting: int) -> None:
        """End open utterances where the consumer waits and no sound has come for long.

        Of several characters also of one that has too little for a block, while others speak.
        """
        voices, block_s = self._timeline.voices, self._block_frames / VIDEO_FPS
        for character, pushed in self._last_push.items():
            voice = voices[character]
            holds_up = not waiting or (len(voices) > 1 and voice.pending_s < block_s)
            is_stale = self._clock() - pushed >= self.limits.patience_s
            if holds_up and voice.has_open_utterance and is_stale:
                voice.end_utterance()

    def _voice(self, character: int) -> LiveTimeline:
        voices = self._timeline.voices
        if not 0 <= character < len(voices):
            raise UsageError(
                f"character: expected 0 to {len(voices) - 1}, since the session has {len(voices)}, got "
                f"{character}"
            )
        return voices[character]

    def _can_poll(self) -> bool:
        return self._has_ended or (bool(self._frames) and not self._is_paused)

    def _check_open(self) -> None:
        if self._has_ended:
            reason = f" ({self._failure})" if self._failure else ""
            raise CancelledError(f"the live session is closed{reason}; open a new one")

    @contextmanager
    def _notifying(self) -> Iterator[None]:
        """Hold the lock, then wake whoever waits."""
        with self._changed:
            yield
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        if self.wake_runner is not None:
            self.wake_runner()
        for listener in listeners:
            listener()
