"""The sound of a live session, cut along its blocks: utterances as they are pushed, silence between them.

Input: sound, pushed from any thread. Output: what a `Session` reads of its timeline, and for every block what
it was made from. An utterance begins with a block and is encoded by a feature stream of its own, as if the
session had begun with it; only the level of the voice is remembered. Blocks of silence share one set of
features, which costs no pass of the speech encoder. Memory: the sound that waits, which is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.engine.sound_timeline import AudioSource, AudioTimeline, Samples
from lipcast.engine.speech_features import LIVE_START, FeatureStream, Loudness, StreamState

_REMEMBERED_LEVEL = 30 * SAMPLE_RATE
"""Samples that the level of earlier utterances counts for at most."""


class PushSource(AudioSource, Protocol):
    """A source of sound that is pushed while it is read."""

    def push(self, samples: NDArray[Any]) -> None: ...

    def finish(self) -> None: ...

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SoundSettings:
    """How the sound of one live session is read."""

    make_source: Callable[[int], PushSource]
    """Opens a source for sound pushed at a rate in Hz; what it gives has `sample_rate`."""
    make_features: Callable[[StreamState], FeatureStream]
    silent_features: Tensor
    """Features of a block of silence [layers, channels, frames]."""
    video_frames_per_block: int
    sample_rate: int
    max_pending_s: float
    """Sound that may wait; more is not accepted."""


@dataclass(frozen=True, slots=True)
class LiveBlock:
    """What a block was made from: the epoch, whether it speaks, and its samples [n, channels]."""

    epoch: int
    is_speech: bool
    samples: Samples
    begins_utterance: bool = False
    num_fillers: int = 0
    """Frames at the end of the block that come after the utterance."""
    begin_s: float = 0.0
    """Sound of the epoch that was pushed before that of this block."""
    end_s: float = 0.0
    """The same with the sound of this block."""

    def spoken_s(self, num_frames: int) -> float:
        """Return how much sound of the epoch has been given out with the first frames of the block."""
        return min(self.begin_s + num_frames / VIDEO_FPS, self.end_s)


class _Utterance:
    """Sound that belongs together, from its first sample to its end."""

    def __init__(self, settings: SoundSettings, sample_rate: int) -> None:
        self._settings, self.sample_rate = settings, sample_rate
        self.source = settings.make_source(sample_rate)
        self.is_open = True
        self.num_pushed = 0
        self.first_block: int | None = None
        """None until its first block has begun."""
        self.num_begun = 0
        self._stream: FeatureStream | None = None
        self._timeline: AudioTimeline | None = None

    @property
    def pushed_s(self) -> float:
        """Seconds of sound that were pushed."""
        return self.num_pushed / self.sample_rate

    @property
    def used_s(self) -> float:
        """Seconds of it that blocks have been made from."""
        begun_s = self.num_begun * self._settings.video_frames_per_block / VIDEO_FPS
        return min(self.pushed_s, begun_s)

    @property
    def pending_s(self) -> float:
        """Seconds that no block has been made from."""
        return self.pushed_s - self.used_s

    def push(self, samples: NDArray[Any]) -> None:
        self.source.push(samples)
        self.num_pushed += len(samples)

    def end(self) -> None:
        self.is_open = False
        self.source.finish()

    def level(self, before: Loudness) -> Loudness:
        """Return the level of the voice after this utterance."""
        measured = before if self._stream is None else self._stream.state.loudness
        return replace(measured, count=min(measured.count, _REMEMBERED_LEVEL))

    def take(self, block: int, level: Loudness) -> tuple[Tensor, Samples] | None:
        """Return the features and samples of a block; None where they have not come, or after the end."""
        settings = self._settings
        if self._timeline is None:
            self._stream = settings.make_features(StreamState(level))
            self._timeline = AudioTimeline(
                self.source,
                self._stream,
                video_frames_per_block=settings.video_frames_per_block,
                max_frames=None,
            )
        first = block if self.first_block is None else self.first_block
        features = self._timeline.features(block - first, wait=False)
        if features is None:
            return None
        self.first_block, self.num_begun = first, self.num_begun + 1
        return features, self._timeline.take_samples(settings.video_frames_per_block)

    @property
    def num_fillers(self) -> int:
        """Frames of the blocks that have begun that no sound was pushed for."""
        if self.is_open:
            return 0
        begun = self.num_begun * self._settings.video_frames_per_block
        return max(0, begun - -(-self.num_pushed * VIDEO_FPS // self.sample_rate))

    @property
    def is_over(self) -> bool:
        """Whether it has ended and all of its blocks have begun."""
        used = self.num_begun * self._settings.video_frames_per_block * self.sample_rate
        return not self.is_open and self.num_pushed * VIDEO_FPS <= used


class LiveTimeline:
    """The timeline of a session that does not end by itself; see `Timeline`."""

    num_frames: None = None
    num_blocks: None = None

    def __init__(self, settings: SoundSettings) -> None:
        self.changed = threading.Condition(threading.RLock())
        """Guards all state; notified by whoever owns the session."""
        self.sample_rate = settings.sample_rate
        self.epoch = 0
        self.idle_allowed = False
        """Whether a block of silence may begin where there is no sound."""
        self._dropped_s = 0.0
        self._settings = settings
        self._utterances: deque[_Utterance] = deque()
        self._finished_s = 0.0
        """Sound of the utterances of this epoch of which all blocks have begun."""
        self._level = LIVE_START
        self._begun: deque[LiveBlock] = deque()
        self._made: deque[LiveBlock] = deque()

    @property
    def voices(self) -> tuple[LiveTimeline, ...]:
        """What sound is pushed to: one for each character."""
        return (self,)

    # Sound in, from any thread.

    def push(self, samples: NDArray[Any], sample_rate: int) -> int:
        """Append sound, and return how many samples were accepted; the rest is dropped and counted.

        It continues the utterance that is open; one of another sampling rate ends it and begins the next.
        """
        with self.changed:
            last = self._utterances[-1] if self.has_open_utterance else None
            continues = last is not None and last.sample_rate == sample_rate
            utterance = last if continues and last else _Utterance(self._settings, sample_rate)
            most = max(0, int((self._settings.max_pending_s - self.pending_s) * sample_rate))
            accepted = min(len(samples), most)
            utterance.push(samples[:accepted])
            self._dropped_s += (len(samples) - accepted) / sample_rate
            if accepted and not continues:
                self.end_utterance()
                self._utterances.append(utterance)
            return accepted

    def end_utterance(self) -> None:
        """No more sound belongs to the open utterance: its last block is filled with silence."""
        with self.changed:
            if self.has_open_utterance:
                self._utterances[-1].end()
                self.forget_finished()

    def interrupt(self) -> int:
        """Begin a new epoch without any of the sound that waits; returns its number."""
        with self.changed:
            self._dropped_s += self.pending_s
            if self._utterances:
                self._level = self._utterances[0].level(self._level)
            self._utterances.clear()
            self._finished_s = 0.0
            self.epoch += 1
            return self.epoch

    @property
    def dropped_s(self) -> float:
        """Seconds of sound that were pushed and will not be heard."""
        return self._dropped_s

    @property
    def said_s(self) -> float:
        """Seconds of this epoch's sound that blocks have been made from."""
        with self.changed:
            begun_s = self._utterances[0].used_s if self._utterances else 0.0
            return self._finished_s + begun_s

    @property
    def pending_s(self) -> float:
        """Seconds of sound that wait to be spoken."""
        with self.changed:
            return sum(utterance.pending_s for utterance in self._utterances)

    @property
    def has_open_utterance(self) -> bool:
        """Whether more sound may come for the last utterance."""
        with self.changed:
            return bool(self._utterances) and self._utterances[-1].is_open

    @property
    def has_sound(self) -> bool:
        """Whether an utterance waits or is being spoken."""
        with self.changed:
            return bool(self._utterances)

    @property
    def is_speaking(self) -> bool:
        """Whether the first utterance has begun, or a block of speech is being made."""
        with self.changed:
            begun = bool(self._utterances) and self._utterances[0].first_block is not None
            return begun or any(block.is_speech for block in self._begun)

    @property
    def has_unshown(self) -> bool:
        """Whether there is sound of this epoch whose pictures the session has not given out."""
        with self.changed:
            blocks = (*self._begun, *self._made)
            unshown = (block.is_speech and block.epoch == self.epoch for block in blocks)
            return bool(self._utterances) or any(unshown)

    # Blocks out, to the session.

    @property
    def num_in_flight(self) -> int:
        """Blocks that have begun and whose pictures have not come."""
        with self.changed:
            return len(self._begun)

    def features(self, block: int, *, wait: bool = True) -> Tensor | None:
        """Return the features of a block of speech, or of silence where that is allowed.

        None where there is nothing to begin a block with.
        """
        assert not wait, "the runner of live sessions never waits"
        with self.changed:
            if not self._utterances:
                return self._begin_silence() if self.idle_allowed else None
        spoken = self.take_speech(block)
        if spoken is None:
            return None
        features, begun = spoken
        with self.changed:
            self._begun.append(begun)
            self.forget_finished()
            return features

    def take_speech(self, block: int) -> tuple[Tensor, LiveBlock] | None:
        """Return the features [layers, channels, frames] of what is said in a block, and the block.

        None where nothing is said, or its sound has not come. An interruption meanwhile leaves the block in
        the epoch that it was taken in.
        """
        with self.changed:
            if not self._utterances:
                return None
            utterance, level, epoch = self._utterances[0], self._level, self.epoch
            before_s, begin_s = self._finished_s, self.said_s
        # Without the lock: whoever pushes or interrupts does not wait for the speech encoder.
        taken = utterance.take(block, level)
        with self.changed:
            if taken is None:
                return None
            features, samples = taken
            begins, end_s = utterance.num_begun == 1, before_s + utterance.used_s
            num_fillers = utterance.num_fillers
            return features, LiveBlock(epoch, True, samples, begins, num_fillers, begin_s, end_s)

    def forget_finished(self) -> None:
        """Drop the utterances all of whose blocks have begun; the lock is held."""
        while self._utterances and self._utterances[0].is_over:
            finished = self._utterances.popleft()
            self._level = finished.level(self._level)
            self._finished_s += finished.pushed_s

    def take_samples(self, num_frames: int) -> Samples:
        """Return the samples of the oldest block that has begun."""
        with self.changed:
            block = self._begun.popleft()
            self._made.append(block)
            assert num_frames == self._settings.video_frames_per_block
            return block.samples

    def take_made(self) -> LiveBlock:
        """Return what the oldest block that the session has given out was made from."""
        with self.changed:
            return self._made.popleft()

    def _begin_silence(self) -> Tensor:
        frames = self._settings.video_frames_per_block
        samples = np.zeros((frames * self.sample_rate // VIDEO_FPS, 1), np.float32)
        said_s = self.said_s
        self._begun.append(LiveBlock(self.epoch, False, samples, begin_s=said_s, end_s=said_s))
        return self._settings.silent_features
