"""Sound sources: files and live PCM, as chunks for the muxer and for the speech encoder.

Input: anything FFmpeg reads (a video's sound too), or pushed samples.
Output: `AudioChunk`s: the same stretch of time at the muxer's rate and as 16 kHz mono.
A file is decoded twice, to be counted, checked and measured, and to be read: memory is flat.
Channels are averaged for speech (FFmpeg's own downmix of stereo is 3 dB too loud). Two things of a file are
mended, and said: channels that cancel in the mean, and noise without a voice, which would move the mouth.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.env import logger
from lipcast.errors import CancelledError, InputError, UsageError
from lipcast.media.decode import (
    EXPECTED_SOUND,
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
from lipcast.media.sound_parts import FileSource
from lipcast.media.voice_scan import VoiceScan

_LOG = logger("media.audio")
_CANCELLED = 0.25
"""The mean of the channels is this much quieter (6 dB) than that of unrelated ones: they cancel."""
_MUTE = 1e3
"""Divisor of noise without a voice, which makes it digital silence to the encoder."""
_CHUNK_FRAMES = VIDEO_FPS
"""The most video frames in a chunk: one second."""


class AudioFile:
    """A sound file that was scanned, to be read once. Made by `open_audio`."""

    def __init__(self, source: FileSource, *, clean: bool = True) -> None:
        """Scan the whole file. Raises InputError where it cannot be used.

        `clean`: hear the loudest channel where the channels cancel, and nothing where there is noise without
        a voice. Without it the arithmetic is the published one: the mean of the channels, at any level.
        """
        self._source = source
        scan = _scan(source)
        self._channel: int | None = None
        name = source_name(source)
        if clean and scan.cancels:
            self._channel = int(np.argmax(scan.channel_powers))
            scan = _scan(source, channel=self._channel)
            _LOG.warning(
                "%s: its channels cancel each other; the lips follow channel %d, the loudest",
                name,
                self._channel + 1,
            )
        self._native = scan.num_samples, scan.rate
        self.resample(mux_rate(scan.rate))
        self.num_channels = min(2, scan.num_channels)
        self.num_speech_samples = resampled_length(scan.num_samples, scan.rate, SAMPLE_RATE)
        self.duration_s = scan.num_samples / scan.rate
        self.speech_mean, self.speech_std = scan.speech_mean, scan.speech_std
        if scan.speech_std == 0:
            _LOG.warning("%s: is silent; the mouth stays closed", name)
        elif scan.is_noise and clean:
            self.speech_std *= _MUTE
            _LOG.warning(
                "%s: steady noise (%.0f dB) and no voice in it; the mouth stays closed "
                "(--no_clean_audio lets the noise move it)",
                name,
                20 * math.log10(scan.speech_std),
            )
        self._chunks = self._read_chunks()

    def speech(self) -> Samples:
        """Decode the whole sound as 16 kHz mono, [n]; what `read` gives stays as it is."""
        return read_speech(self._source, channel=self._channel)[0]

    def resample(self, sample_rate: int) -> None:
        """Give the muxer's samples at another rate, one of `MUX_RATES`. Call it before `read`."""
        num_samples, rate = self._native
        self.sample_rate = sample_rate
        self.num_samples = resampled_length(num_samples, rate, sample_rate)

    def ready(self) -> bool:
        """Return True: a file never waits."""
        return True

    def read(self) -> AudioChunk | None:
        """Return the next second, the last chunk shorter; None at the end.

        Raises InputError if the file changed since it was scanned.
        """
        return next(self._chunks, None)

    def _read_chunks(self) -> Iterator[AudioChunk]:
        num_read = 0
        for chunk in _chunks(SoundDecoder(self._source), self._channel, self.sample_rate):
            num_read += len(chunk.samples)
            yield chunk
        if num_read != self.num_samples:
            raise InputError(
                f"expected {self.num_samples} samples in {source_name(self._source)}, got "
                f"{num_read}: it changed while it was in use; start again"
            )


def open_audio(source: FileSource, *, clean: bool = True) -> AudioFile:
    """Open a sound file by path or by content, and scan it; `clean` as in `AudioFile`.

    Raises InputError: not there, no sound in it, no samples, NaN or infinity, undecodable.
    A file that is cut short or damaged is used as far as it decodes, with a logged warning.
    """
    return AudioFile(source, clean=clean)


def read_speech(source: FileSource, *, channel: int | None = None) -> tuple[Samples, float]:
    """Return a whole sound as 16 kHz mono, [n], and when it starts in seconds.

    Heard is the mean of the channels, or one of them. Raises InputError as `open_audio` does.
    """
    decoder = SoundDecoder(source)
    speech = list(_speech_blocks(decoder, _Powers(), channel))
    if not any(map(len, speech)):
        raise _without_samples(source)
    return np.concatenate(speech), decoder.start_s


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
        """Declare that no more samples will come. May be called again."""
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
        """Return whether `read` would return at once."""
        with self._changed:
            return self._has_something()

    def read(self) -> AudioChunk | None:
        """Wait for at least one video frame's samples; return all there are, at most a second.

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
    """Findings of the first pass over a file."""

    rate: int
    num_channels: int
    num_samples: int
    speech_mean: float
    speech_std: float
    channel_powers: NDArray[np.float64]
    """Mean square of each channel."""
    mean_power: float
    """Mean square of the mean of the channels."""
    is_noise: bool

    @property
    def cancels(self) -> bool:
        """Whether the mean is far quieter than that of unrelated channels."""
        unrelated = float(self.channel_powers.sum()) / self.num_channels**2
        return self.mean_power < _CANCELLED * unrelated


def _scan(source: FileSource, *, channel: int | None = None) -> _Scan:
    """Decode everything once, at the cost of the 16 kHz signal alone. Sums are in float64.

    `channel`: hear this one in place of the mean.
    """
    decoder, voice = SoundDecoder(source), VoiceScan()
    powers = _Powers()
    total = squares = 0.0
    num_speech = 0
    for speech in _speech_blocks(decoder, powers, channel):
        exact = speech.astype(np.float64)
        total += float(exact.sum())
        squares += float(exact @ exact)
        num_speech += len(exact)
        voice.push(speech)
    if num_speech == 0:
        raise _without_samples(source)
    if channel is None:
        decoder.warn_of_losses()
    mean = total / num_speech
    deviation = math.sqrt(max(0.0, squares / num_speech - mean**2))
    return _Scan(
        rate=decoder.rate,
        num_channels=decoder.num_channels,
        num_samples=decoder.num_samples,
        speech_mean=mean,
        speech_std=deviation,
        channel_powers=powers.channels / decoder.num_samples,
        mean_power=powers.mean / decoder.num_samples,
        is_noise=voice.is_noise(),
    )


def _without_samples(source: FileSource) -> InputError:
    name = source_name(source)
    return InputError(f"{EXPECTED_SOUND}, got {name} without any samples; record it again")


class _Powers:
    """Sums of squares of the channels and of their mean."""

    def __init__(self) -> None:
        self.channels: NDArray[np.float64] = np.zeros(1)
        self.mean = 0.0

    def add(self, block: Samples, mean: Samples) -> None:
        """Add [channels, n] and [1, n]; of one channel the two are the same."""
        self.mean += float(np.square(mean).sum(dtype=np.float64))
        if len(block) > 1:
            self.channels = self.channels + np.square(block).sum(axis=1, dtype=np.float64)
        else:
            self.channels[0] = self.mean


def _speech_blocks(
    decoder: SoundDecoder, powers: _Powers, channel: int | None
) -> Iterator[Samples]:
    """Yield what is heard of each block at 16 kHz, [m]."""
    resampler: Resampler | None = None
    for block in decoder.blocks():
        resampler = resampler or Resampler(decoder.rate, SAMPLE_RATE, 1)
        heard = _heard(block, channel)
        powers.add(block, heard)
        yield resampler.push(heard)[0]
    if resampler is not None:
        yield resampler.finish()[0]


def _heard(block: Samples, channel: int | None) -> Samples:
    """Return [1, n] of [channels, n]: one channel, or the mean of all."""
    return mean_of_channels(block) if channel is None else block[channel : channel + 1]


def _chunks(decoder: SoundDecoder, channel: int | None, sample_rate: int) -> Iterator[AudioChunk]:
    """Decode into chunks of one second, the last shorter."""
    tracks: TwoTracks | None = None
    for block in decoder.blocks():
        num_channels = min(2, decoder.num_channels)
        tracks = tracks or TwoTracks(decoder.rate, num_channels, sample_rate=sample_rate)
        tracks.push(decoder.to_stereo(block), _heard(block, channel))
        while tracks.num_frames >= _CHUNK_FRAMES and (chunk := tracks.take(_CHUNK_FRAMES)):
            yield chunk
    if tracks is not None:
        tracks.finish()
        while chunk := tracks.take(_CHUNK_FRAMES):
            yield chunk


def _pcm_channels(samples: NDArray[Any]) -> Samples:
    """Return pushed samples as float32 [channels, n], checked."""
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
    """Return one channel (the mean) or two (the first two, or the only one twice)."""
    if num_channels == 1:
        return mean_of_channels(channels)
    return np.repeat(channels, 2, axis=0) if len(channels) == 1 else channels[:2]
