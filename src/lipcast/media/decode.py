"""The sound of any file as float32 blocks at its own rate, with everything that can go wrong.

Input: a path or the bytes of a file. Output: [channels, n] blocks of about a second; counts.
Codec padding is cut, damaged packets are left out and counted, NaN is refused.
Only the named file is read: what it points to on a network is not followed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.resample import Samples, mean_of_channels, stereo_weights

FileSource = str | os.PathLike[str] | bytes
"""A path, or the content of a file."""

_LOG = logger("media.decode")
_MOST_PADDING = 4096
"""Samples beyond the container's duration that are codec padding; more: the duration is wrong."""
_LENIENT_S = 0.25
"""How far a container's duration may be off without the file being cut short."""
_UNKNOWN_SIZE = 0x7FFF_FFFF
EXPECTED_SOUND = "expected a sound file (wav, mp3, m4a, flac, ogg, or a video with sound)"
_ADVICE = "convert it to wav or mp4"


def open_container(source: FileSource, *, expected: str) -> Any:
    """A demuxer. Raises InputError, which begins with what was `expected`."""
    import av

    name = source_name(source)
    local_only = {"protocol_whitelist": "file"}
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), options=local_only)
        # "file:" keeps a colon in the name from being read as a protocol.
        return av.open(f"file:{name}", options=local_only)
    except FileNotFoundError as error:
        raise InputError(f"{expected}, got {name}, which does not exist; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{expected}, got {name}, a folder; name a file in it") from error
    except PermissionError as error:
        raise InputError(f"{expected}, got {name}, which may not be read; allow it") from error
    except (OSError, ValueError, av.FFmpegError) as error:
        what = "which is empty" if _num_bytes(source) == 0 else "which is not one or is broken"
        raise InputError(f"{expected}, got {name}, {what}; {_ADVICE}") from error


def source_name(source: FileSource) -> str:
    """What to call it in a message."""
    return f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


class SoundDecoder:
    """Decodes the sound of one file once.

    `rate` (Hz), `num_channels` and `start_s` are known from the first block on, `num_samples`
    (per channel) counts what was decoded so far.
    """

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self.rate = self.num_channels = self.num_samples = 0
        self.start_s = 0.0
        self._channel_names: list[str] = []
        self._num_damaged = 0
        self._promised_s: float | None = None

    def blocks(self) -> Iterator[Samples]:
        """[channels, n] blocks. Raises InputError: unreadable, no sound, NaN, a change of rate."""
        with open_container(self._source, expected=EXPECTED_SOUND) as container:
            if not container.streams.audio:
                name = source_name(self._source)
                raise InputError(f"{EXPECTED_SOUND}, got {name}, which has no sound in it")
            stream = container.streams.best("audio")
            self._promised_s = _promised_s(container, stream, self._source)
            raw = self._float_blocks(self._frames(container, stream))
            if _states_length(container, stream):
                length_s = stream.duration * stream.time_base
                raw = _without_padding(raw, lambda: round(length_s * self.rate))
            for block in raw:
                self.num_samples += block.shape[1]
                yield block

    def to_stereo(self, block: Samples) -> Samples:
        """[channels, n] as at most two channels."""
        if self.num_channels <= 2:
            return block
        mixed: Samples = stereo_weights(self._channel_names) @ block
        return mixed

    def warn_of_losses(self) -> None:
        """Log what of the file could not be used; after the last block."""
        name, decoded_s = source_name(self._source), self.num_samples / self.rate
        if self._num_damaged:
            _LOG.warning("%s: %d damaged packets were left out", name, self._num_damaged)
        if self._promised_s is not None and decoded_s < self._promised_s - _LENIENT_S:
            _LOG.warning(
                "%s: expected %.2f s of sound, got %.2f s: the file is cut short or damaged; "
                "what is there is used",
                name,
                self._promised_s,
                decoded_s,
            )

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames. A broken packet is skipped; where demuxing fails is the end."""
        import av

        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (OSError, ValueError, av.FFmpegError):
                self._num_damaged += 1
                return
            if packet is None:
                return
            yield from self._decoded(packet)

    def _decoded(self, packet: Any) -> list[Any]:
        import av

        try:
            frames: list[Any] = packet.decode()
        except (OSError, ValueError, av.FFmpegError):
            self._num_damaged += 1
            return []
        return [frame for frame in frames if frame.samples]

    def _float_blocks(self, frames: Iterator[Any]) -> Iterator[Samples]:
        """Frames of one kind, joined to about a second."""
        import av

        kind, fifo = None, av.AudioFifo()
        for frame in frames:
            self._check_rate(frame)
            frame.pts = None  # a gap or an overlap in the timestamps is no reason to stop
            if fifo.samples >= self.rate or (fifo.samples and _kind(frame) != kind):
                yield self._as_float(fifo.read())
            if _kind(frame) != kind:
                kind, fifo = _kind(frame), av.AudioFifo()
            fifo.write(frame)
        if fifo.samples:
            yield self._as_float(fifo.read())

    def _check_rate(self, frame: Any) -> None:
        if not self.rate:
            self._channel_names = [channel.name for channel in frame.layout.channels]
            self.rate, self.num_channels = frame.sample_rate, len(self._channel_names)
            self.start_s = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
        if frame.sample_rate != self.rate:
            raise InputError(
                f"expected one sampling rate in {source_name(self._source)}, got {self.rate} and "
                f"then {frame.sample_rate} Hz; {_ADVICE}"
            )

    def _as_float(self, frame: Any) -> Samples:
        samples: NDArray[Any] = frame.to_ndarray()
        if not frame.format.is_planar:
            samples = samples.reshape(-1, frame.layout.nb_channels).T
        block = to_float(np.ascontiguousarray(samples))
        if not np.isfinite(block).all():
            raise InputError(
                f"expected finite samples in {source_name(self._source)}, got NaN or infinity; "
                "export it again as 16-bit wav"
            )
        if len(block) == self.num_channels:
            return block
        # The number of channels may change within a stream; the first frame decided.
        return np.repeat(mean_of_channels(block), self.num_channels, axis=0)


def read_sound(source: FileSource) -> tuple[Samples, int, float]:
    """A whole sound, [n, channels] as in the file; its rate in Hz; when it starts, in seconds."""
    decoder = SoundDecoder(source)
    blocks = list(decoder.blocks())
    if not blocks:
        raise InputError(f"{EXPECTED_SOUND}, got {source_name(source)} without any samples")
    return np.concatenate(blocks, axis=1).T, decoder.rate, decoder.start_s


def to_float(samples: NDArray[Any]) -> Samples:
    """PCM of any type as float32 in -1..1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    block = samples.astype(np.float32)
    if samples.dtype == np.uint8:
        block -= 128
    block *= np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
    return block


def _kind(frame: Any) -> tuple[str, int]:
    return frame.format.name, frame.layout.nb_channels


def _without_padding(blocks: Iterator[Samples], limit: Callable[[], int]) -> Iterator[Samples]:
    """Leave out at most 4096 samples beyond the limit at the end.

    If more follow, the limit was wrong and everything is kept. The limit is asked for when the
    first block is there, since only decoded frames tell the true rate (HE-AAC doubles it).
    """
    num_kept = 0
    beyond: Samples | None = None
    for block in blocks:
        if beyond is not None:
            block = np.concatenate([beyond, block], axis=1)
        kept = min(block.shape[1], max(0, limit() - num_kept))
        if block.shape[1] - kept > _MOST_PADDING:
            kept = block.shape[1]
        num_kept += kept
        beyond = block[:, kept:]
        yield block[:, :kept]


def _states_length(container: Any, stream: Any) -> bool:
    """Whether the container's length counts; only MP4 has padding that the decoder leaves in."""
    return "mp4" in container.format.name and bool(stream.duration)


def _promised_s(container: Any, stream: Any, source: FileSource) -> float | None:
    """How long the file says that it is, in seconds; None where it does not say."""
    if container.format.name == "wav":
        return _promised_by_wav(stream, source)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _promised_by_wav(stream: Any, source: FileSource) -> float | None:
    """By the size in the RIFF header: the library tells what is there, not what should be."""
    if isinstance(source, bytes):
        header = source[:8]
    else:
        with Path(source).open("rb") as file:
            header = file.read(8)
    promised = int.from_bytes(header[4:8], "little") + 8
    if header[:4] != b"RIFF" or promised >= _UNKNOWN_SIZE or not stream.duration:
        return None
    return float(stream.duration * stream.time_base) * max(1.0, promised / _num_bytes(source))


def _num_bytes(source: FileSource) -> int:
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size
