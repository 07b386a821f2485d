"""Timelines of a model's live sessions: of one voice, or of several characters who speak as they like.

Input: sound, pushed for one character or another. Output: as of a `LiveTimeline`; features of all of them in
one tensor, and the mix of what they say. Memory: the sound that waits, which is bounded for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.engine.live_timeline import (
    LiveBlock,
    LiveTimeline,
    PushSource,
    SoundSettings,
)
from lipcast.engine.sound_timeline import Mix
from lipcast.engine.speech_features import LIVE_START, FeatureStream, StreamState
from lipcast.models.speech import SpeechEncoder


class CharactersLive(LiveTimeline):
    """The timeline of several characters, who may speak at the same time; each has its own utterances.

    A block begins where one of them has sound for it. It waits for those in the middle of an utterance, and
    the others are silent in it.
    """

    def __init__(self, settings: SoundSettings, num_characters: int, mix: Mix) -> None:
        super().__init__(settings)
        self._mix = mix
        self._voices = tuple(LiveTimeline(settings) for _ in range(num_characters))
        self._taken: dict[int, tuple[Tensor, LiveBlock]] = {}
        """What was taken by some of them for the block that the others have no sound for yet."""

    def end_utterance(self) -> None:
        """No more sound belongs to the open utterances."""
        for voice in self.voices:
            voice.end_utterance()

    def interrupt(self) -> int:
        """Begin a new epoch without any of the sound that waits; returns its number."""
        with self.changed:
            for voice in self.voices:
                voice.interrupt()
            self._taken = {}
            return super().interrupt()

    @property
    def voices(self) -> tuple[LiveTimeline, ...]:
        """What sound is pushed to: one for each character."""
        return self._voices

    @property
    def dropped_s(self) -> float:
        """Seconds of sound of all of them that will not be heard."""
        return sum(voice.dropped_s for voice in self.voices)

    @property
    def said_s(self) -> float:
        """Seconds of sound of the one of this epoch who has said most."""
        return max(voice.said_s for voice in self.voices)

    @property
    def pending_s(self) -> float:
        """Seconds until all have said what waits."""
        return max(voice.pending_s for voice in self.voices)

    @property
    def has_open_utterance(self) -> bool:
        """Whether more sound may come for an utterance."""
        return any(voice.has_open_utterance for voice in self.voices)

    @property
    def has_sound(self) -> bool:
        """Whether an utterance waits or is being spoken."""
        return bool(self._taken) or any(voice.has_sound for voice in self.voices)

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance has begun, or a block of speech is being made."""
        return super().is_speaking or any(voice.is_speaking for voice in self.voices)

    @property
    def has_unshown(self) -> bool:
        """Whether there is sound of this epoch whose pictures the session has not given out."""
        with self.changed:
            return self.has_sound or super().has_unshown

    def features(self, block: int, *, wait: bool = True) -> Tensor | None:
        """Return the features of a block, [A, layers, channels, frames]; see `LiveTimeline.features`."""
        assert not wait, "the runner of live sessions never waits"
        silence = self._settings.silent_features
        with self.changed:
            if not self.has_sound:
                if not self.idle_allowed:
                    return None
                self._begin_silence()
                return torch.stack([silence] * len(self.voices))
        if not self._take_all(block):
            return None
        with self.changed:
            taken, self._taken = self._taken, {}
            if not taken:
                return None
            self._begun.append(self._together(taken))
            for voice in self.voices:
                with voice.changed:
                    voice.forget_finished()
        parts = (taken.get(index) for index in range(len(self.voices)))
        return torch.stack([silence if part is None else part[0] for part in parts])

    def _take_all(self, block: int) -> bool:
        """Take what each says in a block; returns False where the sound of one is still to come."""
        for index, voice in enumerate(self.voices):
            if index in self._taken:
                continue
            is_begun = voice.is_speaking
            spoken = voice.take_speech(block)
            if spoken is None and is_begun and voice.has_sound:
                return False
            with self.changed:
                # What was said before an interruption meanwhile is not shown.
                if spoken is not None and spoken[1].epoch == self.epoch:
                    self._taken[index] = spoken
        return True

    def _together(self, taken: Mapping[int, tuple[Tensor, LiveBlock]]) -> LiveBlock:
        blocks = [block for _, block in taken.values()]
        before_s = (
            taken[index][1].begin_s if index in taken else voice.said_s
            for index, voice in enumerate(self.voices)
        )  # fmt: skip
        return replace(
            blocks[0],
            samples=self._mix([block.samples for block in blocks]),
            begins_utterance=any(each.begins_utterance for each in blocks),
            num_fillers=min(each.num_fillers for each in blocks),
            begin_s=max(before_s),
            end_s=self.said_s,
        )


class _Speech(Protocol):
    @property
    def speech(self) -> SpeechEncoder: ...


class LiveSounds:
    """Makes the timelines of a model's live sessions, which share the features of silence."""

    def __init__(self, networks: _Speech, mix: Mix) -> None:
        """`mix` adds the sounds of several characters."""
        self._networks, self._mix = networks, mix
        self._silence: dict[int, Tensor] = {}
        """By the number of frames of a block."""

    def timeline(
        self,
        make_source: Callable[[int], PushSource],
        *,
        video_frames_per_block: int,
        sample_rate: int,
        max_pending_s: float,
        num_characters: int = 1,
    ) -> LiveTimeline:
        """Return the timeline of a new session; the arguments are the fields of `SoundSettings`."""
        make_features = partial(self._features, video_frames_per_block)
        if video_frames_per_block not in self._silence:
            silence = _silent_features(make_features, video_frames_per_block)
            self._silence[video_frames_per_block] = silence
        settings = SoundSettings(
            make_source,
            make_features,
            self._silence[video_frames_per_block],
            video_frames_per_block,
            sample_rate,
            max_pending_s,
        )
        return (
            CharactersLive(settings, num_characters, self._mix)
            if num_characters > 1
            else LiveTimeline(settings)
        )

    def _features(self, video_frames_per_block: int, state: StreamState) -> FeatureStream:
        return FeatureStream(
            self._networks.speech, video_frames_per_block=video_frames_per_block, state=state
        )


def _silent_features(make_features: Callable[[StreamState], FeatureStream], frames: int) -> Tensor:
    """Return the features of a block of `frames` in the middle of silence [layers, channels, frames]."""
    stream = make_features(StreamState(LIVE_START))
    num_blocks = max(2, -(-2 * VIDEO_FPS // frames))
    stream.push(np.zeros((num_blocks + 1) * frames * SAMPLE_RATE // VIDEO_FPS, np.float32))
    stream.finish()
    taken = [stream.take(block) for block in range(num_blocks)]
    assert taken[-1] is not None
    return taken[-1]
