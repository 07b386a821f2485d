"""The sound of one video: speech features for the model, samples for the listener, cut by block.

Input: an `AudioSource`, read only as far as needed. Output: features of block b, or None past the end;
samples of the next frames. Memory: what is read and not yet taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.models import VIDEO_FPS
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.snapshot import BlockRange
from lipcast.engine.speech_features import FeatureStream
from lipcast.errors import InputError
from lipcast.models.speech import SpeechEncoder

Samples = NDArray[np.float32]


class Chunk(Protocol):
    """A piece of sound, twice: as it is heard, and as 16 kHz mono for the speech encoder."""

    @property
    def samples(self) -> Samples: ...

    @property
    def speech(self) -> Samples: ...


class AudioSource(Protocol):
    """Source of sound: a file, a microphone. Lengths and statistics are None while they are not known."""

    @property
    def sample_rate(self) -> int:
        """Sampling rate of the muxer's samples in Hz, a multiple of 25."""

    @property
    def num_channels(self) -> int:
        """Channels of the muxer's samples."""

    @property
    def num_samples(self) -> int | None:
        """Samples per channel at `sample_rate`."""

    @property
    def num_speech_samples(self) -> int | None:
        """Samples at 16 kHz."""

    @property
    def speech_mean(self) -> float | None:
        """Mean of the 16 kHz samples."""

    @property
    def speech_std(self) -> float | None:
        """Standard deviation of the 16 kHz samples."""

    def ready(self) -> bool:
        """Return whether `read` returns at once."""

    def read(self) -> Chunk | None:
        """Return the next piece; None at the end. May wait for it."""


class Features(Protocol):
    """Speech features by block, from 16 kHz pieces."""

    def push(self, wave_N: Samples) -> None: ...

    def finish(self) -> None: ...

    def take(self, block: int) -> Tensor | None: ...


class Timeline(Protocol):
    """The sound of one video, cut along its blocks."""

    @property
    def sample_rate(self) -> int:
        """Of the samples that `take_samples` gives, in Hz."""

    @property
    def num_frames(self) -> int | None:
        """Length of the video in frames; None while not known."""

    @property
    def num_blocks(self) -> int | None:
        """Blocks that the video needs; None while not known."""

    def features(self, block: int, *, wait: bool = True) -> Tensor | None:
        """Return the features of a block; None where the sound ends before it or has not come yet."""

    def take_samples(self, num_frames: int) -> Samples:
        """Return the samples of the next frames, [n, channels]."""


class AudioTimeline:
    """Reads a source up to `max_frames` video frames and cuts it along the blocks."""

    def __init__(
        self,
        source: AudioSource,
        features: Features,
        *,
        video_frames_per_block: int,
        max_frames: int | None,
        first_block: int = 0,
    ) -> None:
        """`first_block`: where the video goes on; the samples before it are read and dropped."""
        self._source = source
        self._features = features
        self._video_frames_per_block = video_frames_per_block
        self._max_frames = max_frames
        self._samples_per_frame = source.sample_rate // VIDEO_FPS
        self._pending: deque[Samples] = deque()
        self._num_taken = 0
        """Samples of the first pending piece that were given out."""
        self._num_unwanted = first_block * video_frames_per_block * self._samples_per_frame
        """Samples still to be dropped."""
        self._num_read = 0
        self._ended = False

    @property
    def sample_rate(self) -> int:
        """Sample rate of the samples that `take_samples` returns, in Hz."""
        return self._source.sample_rate

    @property
    def num_frames(self) -> int | None:
        """Length of the video in frames: ceil(seconds * 25), bounded; None while not known."""
        known = self._num_read if self._ended else self._source.num_samples
        if known is None:
            return None
        frames = -(-known // self._samples_per_frame)
        return frames if self._max_frames is None else min(frames, self._max_frames)

    @property
    def num_blocks(self) -> int | None:
        """Blocks that the video needs; None while not known."""
        frames = self.num_frames
        return None if frames is None else -(-frames // self._video_frames_per_block)

    def features(self, block: int, *, wait: bool = True) -> Tensor | None:
        """Return the features [layers, channels, frames per block] of a block.

        None where the sound ends before it, or, with `wait` off, where it has not come yet.
        Raises InputError if the whole source turns out to hold no sample.
        """
        while not self._is_past_end(block):
            taken = self._features.take(block)
            if taken is not None:
                return taken
            if self._ended or (not wait and not self._source.ready()):
                return None
            self._read()
        return None

    def _is_past_end(self, block: int) -> bool:
        known = self.num_blocks
        return known is not None and block >= known

    def take_samples(self, num_frames: int) -> Samples:
        """Return a copy of the next frames' samples, [n, channels]; silence where the source has ended."""
        taken = self._silence(num_frames * self._samples_per_frame)
        filled = 0
        while filled < len(taken) and self._pending:
            piece = self._pending[0][self._num_taken :]
            count = min(len(piece), len(taken) - filled)
            taken[filled : filled + count] = piece[:count]
            filled, self._num_taken = filled + count, self._num_taken + count
            if count == len(piece):
                self._pending.popleft()
                self._num_taken = 0
        return taken

    def _read(self) -> None:
        chunk = self._source.read()
        if chunk is None:
            self._end()
            return
        dropped = min(self._num_unwanted, len(chunk.samples))
        self._num_unwanted -= dropped
        if dropped < len(chunk.samples):  # an empty view would keep all of the chunk in memory
            self._pending.append(chunk.samples[dropped:])
        self._features.push(chunk.speech)
        self._num_read += len(chunk.samples)

    def _end(self) -> None:
        self._ended = True
        self._features.finish()
        if self._num_read == 0:
            raise InputError("audio: expected at least one sample, got none; give a sound to speak")

    def _silence(self, count: int) -> Samples:
        return np.zeros((count, self._source.num_channels), dtype=np.float32)


Mix = Callable[[Sequence[Samples]], Samples]
"""Adds stretches of equal length."""


def source_timeline(
    encoder: SpeechEncoder,
    sources: Sequence[AudioSource],
    *,
    spec: VideoSpec,
    part: BlockRange,
    mix: Mix,
) -> Timeline:
    """Return the sound of a range of blocks of a video, cut along them; of one voice or of several."""
    found = [_audio_timeline(encoder, source, spec, part) for source in sources]
    return found[0] if len(found) == 1 else CharactersTimeline(found, mix)


def _audio_timeline(
    encoder: SpeechEncoder, source: AudioSource, spec: VideoSpec, block_range: BlockRange
) -> AudioTimeline:
    end = block_range.end_block and block_range.end_block * spec.video_frames_per_block
    features = FeatureStream(
        encoder,
        video_frames_per_block=spec.video_frames_per_block,
        num_samples=source.num_speech_samples,
        mean=source.speech_mean,
        std=source.speech_std,
        first_block=block_range.first_block,
    )
    return AudioTimeline(
        source,
        features,
        video_frames_per_block=spec.video_frames_per_block,
        max_frames=min((n for n in (spec.max_frames, end) if n is not None), default=None),
        first_block=block_range.first_block,
    )


class CharactersTimeline:
    """The sounds of several characters, all of one length: their features, and the mix of their samples."""

    def __init__(self, timelines: Sequence[AudioTimeline], mix: Mix) -> None:
        self._timelines, self._mix = timelines, mix
        self._taken: list[Tensor] = []
        """Features of the first characters, where those of the next one could not be made."""

    @property
    def sample_rate(self) -> int:
        """Sample rate of the samples that `take_samples` returns, in Hz."""
        return self._timelines[0].sample_rate

    @property
    def num_frames(self) -> int | None:
        """Length of the video in frames; None while not known."""
        return self._timelines[0].num_frames

    @property
    def num_blocks(self) -> int | None:
        """Blocks that the video needs; None while not known."""
        return self._timelines[0].num_blocks

    def features(self, block: int, *, wait: bool = True) -> Tensor | None:
        """Return the features [A, layers, channels, frames per block] of a block; None past the end."""
        while len(self._taken) < len(self._timelines):
            features = self._timelines[len(self._taken)].features(block, wait=wait)
            if features is None:
                return None
            self._taken.append(features)
        taken, self._taken = self._taken, []
        return torch.stack(taken)

    def take_samples(self, num_frames: int) -> Samples:
        """Return what all of them say together in the next frames, [n, channels]."""
        return self._mix([timeline.take_samples(num_frames) for timeline in self._timelines])
