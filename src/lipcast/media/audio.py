"""Sound: files of any kind, and live PCM, as chunks for the muxer and the speech encoder.

Input: anything FFmpeg reads (a video's sound too), or pushed samples.
Output: `AudioChunk`s: the same stretch of time at the muxer's rate and as 16 kHz mono.
A file is decoded twice: once to count, check and measure it, once to be read; memory is flat.
Channels are averaged for speech (the library's own downmix is 3 dB too loud). InputError if unusable.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipcast.core.config import SAMPLE_RATE, VIDEO_FPS
from lipcast.errors import CancelledError, InputError, UsageError
from lipcast.media.resample import (
    AudioChunk,
    Samples,
    TwoTracks,
    mux_rate,
    resampled_length,
    stereo_weights,
)
from lipcast.runtime import logger

AudioFileSource = str | os.PathLike[str] | bytes

_LOG = logger("media.audio")
_CHUNK_FRAMES = VIDEO_FPS
"""Video frames in a chunk of a file: one second."""
_MOST_PADDING = 4096
"""Samples beyond the container's duration that are codec padding; more: the duration is wrong."""
_LENIENT_S = 0.25
_EXPECTED = "expected a sound file (wav, mp3, m4a, flac, ogg, or a video with sound)"
_ADVICE = "convert it to wav"


class AudioSource(Protocol):
    """What a session reads. `None` where only the end of a live source will tell."""

    sample_rate: int
    """Of the muxer's samples, in Hz; a multiple of 25."""
    num_channels: int
    """Of the muxer's samples: 1 or 2."""

    @property
    def num_samples(self) -> int | None: ...
    @property
    def num_speech_samples(self) -> int | None: ...
    @property
    def duration_s(self) -> float | None: ...
    @property
    def speech_mean(self) -> float | None: ...
    @property
    def speech_std(self) -> float | None: ...

    def read(self) -> AudioChunk | None:
        """The next chunk; None at the end."""


class AudioFile:
    """A sound file that has been scanned, and is read once. Make it with `open_audio`."""

    def __init__(self, source: AudioFileSource) -> None:
        """Scan the whole file. Raises InputError where it cannot be used."""
        self._source = source
        scan = _scan(source)
        self.sample_rate = mux_rate(scan.rate)
        self.num_channels = scan.num_channels
        self.num_samples = resampled_length(scan.num_native, scan.rate, self.sample_rate)
        self.num_speech_samples = resampled_length(scan.num_native, scan.rate, SAMPLE_RATE)
        self.duration_s = scan.num_native / scan.rate
        self.speech_mean, self.speech_std = scan.mean, scan.std
        self._chunks = self._read_chunks()

    def ready(self) -> bool:
        """A file never waits: `read` returns at once."""
        return True

    def read(self) -> AudioChunk | None:
        """The next second; None at the end. Raises InputError if the file changed since the scan."""
        return next(self._chunks, None)

    def _read_chunks(self) -> Iterator[AudioChunk]:
        num_read = 0
        for chunk in _chunks(_Decoder(self._source)):
            num_read += len(chunk.samples)
            yield chunk
        if num_read != self.num_samples:
            raise InputError(
                f"expected {self.num_samples} samples in {_name(self._source)}, got {num_read}: "
                "it changed while it was read; start again"
            )


def open_audio(source: AudioFileSource) -> AudioFile:
    """Open a sound file by path or by content, and scan it.

    Raises InputError: not there, no sound in it, no samples, NaN or infinite samples, undecodable.
    A file that is cut short or damaged in places is used as far as it decodes, with a warning.
    """
    return AudioFile(source)


class PcmSource:
    """Live PCM with the reading side of an `AudioFile`. Pushing and reading may be two threads."""

    num_samples: int | None = None
    num_speech_samples: int | None = None
    duration_s: float | None = None
    speech_mean: float | None = None
    speech_std: float | None = None

    def __init__(self, sample_rate: int, *, num_channels: int = 1) -> None:
        """`sample_rate` of what is pushed, in Hz; `num_channels` (1 or 2) of what is muxed."""
        if not 1000 <= sample_rate <= 768_000:
            raise UsageError(f"sample_rate: expected 1000 to 768000 Hz, got {sample_rate}")
        if num_channels not in (1, 2):
            raise UsageError(f"num_channels: expected 1 or 2, got {num_channels}")
        self._tracks = TwoTracks(sample_rate, num_channels)
        self.sample_rate, self.num_channels = self._tracks.sample_rate, num_channels
        self._changed = threading.Condition()
        self._cancelled = False

    def push(self, samples: NDArray[Any]) -> None:
        """Append float (-1..1) or int16 samples, [n] or [n, channels].

        Raises InputError for other types and for NaN, UsageError after `finish`, CancelledError
        after `cancel`.
        """
        channels = _pcm_channels(samples)
        with self._changed:
            self._check_not_cancelled()
            if self._tracks.finished:
                raise UsageError("push: expected no more samples after finish; open a new source")
            mono = channels.mean(axis=0, keepdims=True)
            self._tracks.push(_map_channels(channels, self.num_channels), mono)
            self._changed.notify_all()

    def finish(self) -> None:
        """No more samples will come. May be called again."""
        with self._changed:
            if not self._tracks.finished:
                self._tracks.finish()
            self._changed.notify_all()

    def cancel(self) -> None:
        """Wake whoever waits in `read` with CancelledError."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def ready(self) -> bool:
        """Whether `read` returns at once."""
        return self._tracks.num_frames > 0 or self._tracks.finished or self._cancelled

    def read(self) -> AudioChunk | None:
        """Wait for at least one video frame's samples; all that wait, up to a second. None: the end."""
        with self._changed:
            self._changed.wait_for(self.ready)
            self._check_not_cancelled()
            return self._tracks.take(_CHUNK_FRAMES)

    def _check_not_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("the sound source was cancelled")


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the first pass over a file finds."""

    rate: int
    num_channels: int
    num_native: int
    mean: float
    std: float
    """Mean and deviation are of the 16 kHz mono signal, summed in float64."""


def _scan(source: AudioFileSource) -> _Scan:
    decoder = _Decoder(source)
    total = squares = 0.0
    num_speech = 0
    for chunk in _chunks(decoder):
        speech = chunk.speech.astype(np.float64)
        total += float(speech.sum())
        squares += float(speech @ speech)
        num_speech += len(speech)
    if num_speech == 0:
        raise InputError(f"{_EXPECTED}, got {_name(source)} without any samples; {_ADVICE}")
    decoder.warn_of_losses()
    mean = total / num_speech
    return _Scan(
        rate=decoder.rate,
        num_channels=decoder.num_channels,
        num_native=decoder.num_decoded,
        mean=mean,
        std=math.sqrt(max(0.0, squares / num_speech - mean**2)),
    )


def _chunks(decoder: _Decoder) -> Iterator[AudioChunk]:
    """Decode into chunks of one second."""
    tracks: TwoTracks | None = None
    for block in decoder.blocks():
        if tracks is None:
            tracks = TwoTracks(decoder.rate, decoder.num_channels)
        tracks.push(decoder.downmix(block), block.mean(axis=0, keepdims=True))
        while tracks.num_frames >= _CHUNK_FRAMES and (chunk := tracks.take(_CHUNK_FRAMES)):
            yield chunk
    if tracks is None:
        return
    tracks.finish()
    while chunk := tracks.take(_CHUNK_FRAMES):
        yield chunk


class _Decoder:
    """The sound of one file as float32 [channels, n] blocks of about a second.

    `rate`, `num_channels` and the counts are known once `blocks` has run.
    """

    def __init__(self, source: AudioFileSource) -> None:
        self._source = source
        self.rate = self.num_channels = self.num_decoded = self._num_damaged = 0
        self._promised_s: float | None = None
        self._weights: Samples | None = None

    def blocks(self) -> Iterator[Samples]:
        """Decode. Raises InputError; damaged packets are left out and counted."""
        with _open_container(self._source) as container:
            if not container.streams.audio:
                raise InputError(
                    f"{_EXPECTED}, got {_name(self._source)}, which has no sound in it"
                )
            stream = container.streams.best("audio")
            self._promised_s = _promised_s(container, stream, self._source)
            raw = self._raw_blocks(self._frames(container, stream))
            for block in _without_padding(raw, _frame_limit(container, stream)):
                self.num_decoded += block.shape[1]
                yield block

    def downmix(self, block: Samples) -> Samples:
        """[channels, n] of the file as the one or two channels of the muxer."""
        return block if self._weights is None else self._weights @ block

    def warn_of_losses(self) -> None:
        """Say what of the file could not be used."""
        if self._num_damaged:
            _LOG.warning(
                "%s: %d damaged packets were left out", _name(self._source), self._num_damaged
            )
        decoded_s = self.num_decoded / self.rate
        if self._promised_s is not None and decoded_s < self._promised_s - _LENIENT_S:
            _LOG.warning(
                "%s: expected %.2f s of sound, got %.2f s: the file is cut short; the rest is used",
                _name(self._source),
                self._promised_s,
                decoded_s,
            )

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames; broken packets are skipped, an unreadable end is the end."""
        import av  # noqa: PLC0415

        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except av.FFmpegError:
                self._num_damaged += 1
                continue
            if packet is None:
                return
            yield from frames

    def _raw_blocks(self, frames: Iterator[Any]) -> Iterator[Samples]:
        """Frames of one kind joined to about a second and turned to float."""
        waiting: list[NDArray[Any]] = []
        length = 0
        for frame in frames:
            samples = self._accept(frame)
            if waiting and (samples.dtype != waiting[0].dtype or length >= self.rate):
                yield self._as_float(waiting)
                waiting, length = [], 0
            waiting.append(samples)
            length += samples.shape[1]
        if waiting:
            yield self._as_float(waiting)

    def _accept(self, frame: Any) -> NDArray[Any]:
        """One frame as [channels, n], checked against the first."""
        names = [channel.name for channel in frame.layout.channels]
        if not self.rate:
            self.rate, self.num_channels = frame.sample_rate, min(2, len(names))
            self._num_native_channels = len(names)
            self._weights = stereo_weights(names) if len(names) > 2 else None
        if frame.sample_rate != self.rate:
            raise InputError(
                f"expected one sampling rate in {_name(self._source)}, got {self.rate} and then "
                f"{frame.sample_rate} Hz; {_ADVICE}"
            )
        samples: NDArray[Any] = frame.to_ndarray()
        if not frame.format.is_planar:
            samples = samples.reshape(-1, len(names)).T
        if len(names) != self._num_native_channels:
            samples = np.repeat(samples[:1], self._num_native_channels, axis=0)
        return samples

    def _as_float(self, pieces: list[NDArray[Any]]) -> Samples:
        block = _to_float(np.concatenate(pieces, axis=1))
        if not np.isfinite(block).all():
            raise InputError(
                f"expected finite samples in {_name(self._source)}, got NaN or infinity; "
                "export it again as 16-bit wav"
            )
        return block


def _without_padding(blocks: Iterator[Samples], limit: int | None) -> Iterator[Samples]:
    """Leave out the codec's padding: at most 4096 samples beyond `limit` at the end.

    If more follow, the limit was wrong and everything is kept.
    """
    if limit is None:
        yield from blocks
        return
    num_seen = 0
    beyond: Samples | None = None
    for block in blocks:
        if beyond is not None:
            block, beyond = np.concatenate([beyond, block], axis=1), None
        within = min(block.shape[1], max(0, limit - num_seen))
        if block.shape[1] - within > _MOST_PADDING:
            within = block.shape[1]
        if within < block.shape[1]:
            beyond = block[:, within:]
        num_seen += within
        yield block[:, :within]


def _frame_limit(container: Any, stream: Any) -> int | None:
    """Samples by the container's clock, where it is exact and the codec's padding is not cut."""
    if "mp4" not in container.format.name or not stream.duration:
        return None
    return round(stream.duration * stream.time_base * stream.codec_context.sample_rate)


def _promised_s(container: Any, stream: Any, source: AudioFileSource) -> float | None:
    """How long the file says that it is, in seconds."""
    if container.format.name == "wav":
        return _promised_by_wav(stream, source)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _promised_by_wav(stream: Any, source: AudioFileSource) -> float | None:
    """By the size in the RIFF header: the library tells what is there, not what should be."""
    if isinstance(source, bytes):
        header, actual = source[:8], len(source)
    else:
        with Path(source).open("rb") as file:
            header, actual = file.read(8), Path(source).stat().st_size
    promised = int.from_bytes(header[4:8], "little") + 8
    if header[:4] != b"RIFF" or promised >= 0x7FFF_FFFF or not stream.duration:
        return None  # "size unknown" of a program that streamed
    return float(stream.duration * stream.time_base) * max(1.0, promised / actual)


def _open_container(source: AudioFileSource) -> Any:
    """A demuxer on local bytes only. Raises InputError."""
    import av  # noqa: PLC0415

    name = _name(source)
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), options={"protocol_whitelist": "file"})
        # "file:" keeps a colon in the name from being read as a protocol.
        return av.open(f"file:{os.fspath(source)}", options={"protocol_whitelist": "file"})
    except FileNotFoundError as error:
        raise InputError(
            f"{_EXPECTED}, got {name}, which does not exist; check the path"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{_EXPECTED}, got {name}, a folder; name a file in it") from error
    except PermissionError as error:
        raise InputError(f"{_EXPECTED}, got {name}, which may not be read; allow it") from error
    except (av.FFmpegError, ValueError) as error:
        what = "which is empty" if _is_empty(source) else "which is not one or is broken"
        raise InputError(f"{_EXPECTED}, got {name}, {what}; {_ADVICE}") from error


def _is_empty(source: AudioFileSource) -> bool:
    return not source if isinstance(source, bytes) else Path(source).stat().st_size == 0


def _name(source: AudioFileSource) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


def _to_float(samples: NDArray[Any]) -> Samples:
    """PCM of any type as float32 in -1..1."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        scale = np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
        return samples.astype(np.float32) * scale
    return samples.astype(np.float32)


def _pcm_channels(samples: NDArray[Any]) -> Samples:
    """Pushed samples as float32 [channels, n], checked."""
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise InputError(f"expected float or int16 samples, got {samples.dtype}; convert them")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] == 0):
        raise InputError(f"expected samples [n] or [n, channels], got {list(samples.shape)}")
    channels = _to_float(samples[None] if samples.ndim == 1 else samples.T)
    if not np.isfinite(channels).all():
        raise InputError("expected finite samples, got NaN or infinity; check the source")
    return channels


def _map_channels(channels: Samples, num_channels: int) -> Samples:
    """Any number of channels as one (their mean) or two (the first two, or one repeated)."""
    if len(channels) == num_channels:
        return channels
    if num_channels == 1:
        return channels.mean(axis=0, keepdims=True)
    return np.repeat(channels, 2, axis=0) if len(channels) == 1 else channels[:2]
