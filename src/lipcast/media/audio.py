"""Sound sources: files and live PCM, as chunks for the muxer and for the speech encoder.

Input: anything FFmpeg reads (a video's sound too), or pushed samples.
Output: `AudioChunk`s: the same stretch of time at the muxer's rate and as 16 kHz mono.
A file is decoded twice, to be counted, checked and measured, and to be read: memory is flat.
Channels are averaged for speech (FFmpeg's own downmix of stereo is 3 dB too loud).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.errors import CancelledError, InputError, UsageError
from lipcast.media.decode import (
    EXPECTED_SOUND,
    FileSource,
    SoundDecoder,
    source_name,
    to_float,
)
from lipcast.media.resample import (
    MUX_RATES,
    AudioChunk,
    Resampler,
    Samples,
    TwoTracks,
    mean_of_channels,
    mux_rate,
    resampled_length,
)

_CHUNK_FRAMES = VIDEO_FPS
"""The most video frames in a chunk: one second."""


class AudioSource(Protocol):
    """What a session reads. None where only the end of a live source will tell."""

    @property
    def sample_rate(self) -> int:
        """Of the muxer's samples, in Hz: a multiple of 25, and one that AAC has."""

    @property
    def num_channels(self) -> int:
        """Of the muxer's samples: 1 or 2."""

    @property
    def num_samples(self) -> int | None:
        """At `sample_rate`, per channel."""

    @property
    def num_speech_samples(self) -> int | None:
        """At 16 kHz."""

    @property
    def duration_s(self) -> float | None: ...

    @property
    def speech_mean(self) -> float | None: ...

    @property
    def speech_std(self) -> float | None: ...

    def read(self) -> AudioChunk | None:
        """The next chunk; None at the end."""


class AudioFile:
    """A sound file that was scanned, to be read once. Made by `open_audio`."""

    def __init__(self, source: FileSource) -> None:
        """Scan the whole file. Raises InputError where it cannot be used."""
        self._source = source
        scan = _scan(source)
        self.sample_rate = mux_rate(scan.rate)
        self.num_channels = min(2, scan.num_channels)
        self.num_samples = resampled_length(scan.num_samples, scan.rate, self.sample_rate)
        self.num_speech_samples = resampled_length(scan.num_samples, scan.rate, SAMPLE_RATE)
        self.duration_s = scan.num_samples / scan.rate
        self.speech_mean, self.speech_std = scan.speech_mean, scan.speech_std
        self._chunks = self._read_chunks()

    def ready(self) -> bool:
        """A file never waits: `read` returns at once."""
        return True

    def read(self) -> AudioChunk | None:
        """The next second, the last chunk shorter; None at the end.

        Raises InputError if the file changed since it was scanned.
        """
        return next(self._chunks, None)

    def _read_chunks(self) -> Iterator[AudioChunk]:
        num_read = 0
        for chunk in _chunks(SoundDecoder(self._source)):
            num_read += len(chunk.samples)
            yield chunk
        if num_read != self.num_samples:
            raise InputError(
                f"expected {self.num_samples} samples in {source_name(self._source)}, got "
                f"{num_read}: it changed while it was in use; start again"
            )


def open_audio(source: FileSource) -> AudioFile:
    """Open a sound file by path or by content, and scan it.

    Raises InputError: not there, no sound in it, no samples, NaN or infinity, undecodable.
    A file that is cut short or damaged is used as far as it decodes, with a logged warning.
    """
    return AudioFile(source)


class PcmSource:
    """Live PCM with the reading side of an `AudioFile`. Pushing and reading may be two threads."""

    num_samples: None = None
    num_speech_samples: None = None
    duration_s: None = None
    speech_mean: None = None
    speech_std: None = None

    def __init__(
        self, sample_rate: int, *, num_channels: int = 1, mux_rate: int | None = None
    ) -> None:
        """`sample_rate` of what is pushed, in Hz; `num_channels` (1 or 2) of what is muxed.

        `mux_rate`: sampling rate of what is muxed, one of `MUX_RATES`; None: that of what is pushed where
        it is one of them, else 48 kHz.
        """
        if not 1000 <= sample_rate <= 768_000:
            raise UsageError(f"sample_rate: expected 1000 to 768000 Hz, got {sample_rate}")
        if num_channels not in (1, 2):
            raise UsageError(f"num_channels: expected 1 or 2, got {num_channels}")
        if mux_rate is not None and mux_rate not in MUX_RATES:
            raise UsageError(f"mux_rate: expected one of {MUX_RATES}, got {mux_rate}")
        self._tracks = TwoTracks(sample_rate, num_channels, sample_rate=mux_rate)
        self.sample_rate, self.num_channels = self._tracks.sample_rate, num_channels
        self._changed = threading.Condition()
        self._cancelled = False

    def push(self, samples: NDArray[Any]) -> None:
        """Append float (-1..1) or int16 samples, [n] or [n, channels].

        Raises InputError for other types and shapes and for NaN, UsageError after `finish`,
        CancelledError after `cancel`.
        """
        channels = _pcm_channels(samples)
        mono = mean_of_channels(channels)
        with self._changed:
            self._check_not_cancelled()
            if self._tracks.finished:
                raise UsageError("push: expected no more samples after finish; open a new source")
            self._tracks.push(_with_channels(channels, self.num_channels), mono)
            self._changed.notify_all()

    def finish(self) -> None:
        """No more samples will come. May be called again."""
        with self._changed:
            if not self._tracks.finished:
                self._tracks.finish()
            self._changed.notify_all()

    def cancel(self) -> None:
        """End now: whoever waits in `read` gets CancelledError, and so do later calls."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def ready(self) -> bool:
        """Whether `read` would return at once."""
        with self._changed:
            return self._has_something()

    def read(self) -> AudioChunk | None:
        """Wait for at least one video frame's samples; give all there are, at most a second.

        None after the end. Raises CancelledError.
        """
        with self._changed:
            self._changed.wait_for(self._has_something)
            self._check_not_cancelled()
            return self._tracks.take(_CHUNK_FRAMES)

    def _has_something(self) -> bool:
        return self._tracks.num_frames > 0 or self._tracks.finished or self._cancelled

    def _check_not_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("the sound source was cancelled")


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the first pass over a file finds."""

    rate: int
    num_channels: int
    num_samples: int
    speech_mean: float
    speech_std: float


def _scan(source: FileSource) -> _Scan:
    """Decode everything once, at the cost of the 16 kHz signal alone. Sums are in float64."""
    decoder = SoundDecoder(source)
    total = squares = 0.0
    num_speech = 0
    for speech in _speech_blocks(decoder):
        exact = speech.astype(np.float64)
        total += float(exact.sum())
        squares += float(exact @ exact)
        num_speech += len(exact)
    if num_speech == 0:
        raise InputError(
            f"{EXPECTED_SOUND}, got {source_name(source)} without any samples; record it again"
        )
    decoder.warn_of_losses()
    mean = total / num_speech
    deviation = math.sqrt(max(0.0, squares / num_speech - mean**2))
    return _Scan(decoder.rate, decoder.num_channels, decoder.num_samples, mean, deviation)


def _speech_blocks(decoder: SoundDecoder) -> Iterator[Samples]:
    """The mean of the channels at 16 kHz, [m] blocks."""
    resampler: Resampler | None = None
    for block in decoder.blocks():
        resampler = resampler or Resampler(decoder.rate, SAMPLE_RATE, 1)
        yield resampler.push(mean_of_channels(block))[0]
    if resampler is not None:
        yield resampler.finish()[0]


def _chunks(decoder: SoundDecoder) -> Iterator[AudioChunk]:
    """Decode into chunks of one second, the last shorter."""
    tracks: TwoTracks | None = None
    for block in decoder.blocks():
        tracks = tracks or TwoTracks(decoder.rate, min(2, decoder.num_channels))
        tracks.push(decoder.to_stereo(block), mean_of_channels(block))
        while tracks.num_frames >= _CHUNK_FRAMES and (chunk := tracks.take(_CHUNK_FRAMES)):
            yield chunk
    if tracks is not None:
        tracks.finish()
        while chunk := tracks.take(_CHUNK_FRAMES):
            yield chunk


def _pcm_channels(samples: NDArray[Any]) -> Samples:
    """Pushed samples as float32 [channels, n], checked."""
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise InputError(f"expected float or int16 samples, got {samples.dtype}; convert them")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] == 0):
        raise InputError(
            f"expected samples [n] or [n, channels], got {list(samples.shape)}; put channels last"
        )
    channels = to_float(samples[None] if samples.ndim == 1 else samples.T)
    if not np.isfinite(channels).all():
        raise InputError("expected finite samples, got NaN or infinity; check the sound card")
    # The caller may fill the same array again before the samples are read.
    return channels.copy() if np.shares_memory(channels, samples) else channels


def _with_channels(channels: Samples, num_channels: int) -> Samples:
    """As one channel (the mean) or two (the first two, or the only one twice)."""
    if num_channels == 1:
        return mean_of_channels(channels)
    return np.repeat(channels, 2, axis=0) if len(channels) == 1 else channels[:2]
