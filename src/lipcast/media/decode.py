"""The sound of any file as float32 blocks at its own rate, with everything that can go wrong.

Input: a path or the bytes of a file. Output: [channels, n] blocks of about a second; counts.
Codec padding is cut, damaged packets are left out and counted, NaN is refused.
Only the named file is read: what it points to on a network is not followed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.content import HEAD_BYTES, NOT_A_FILE, is_address, kind_of, shortened
from lipcast.media.resample import Samples, mean_of_channels, stereo_weights
from lipcast.media.sound_parts import ByteRanges, FileSource, open_bytes, sample_codes, sound_parts

_LOG = logger("media.decode")
_MOST_PADDING = 4096
"""Samples beyond the container's duration that are codec padding; more: the duration is wrong."""
_LENIENT_S = 0.25
"""How far a container's duration may be off without the file being cut short."""
_LEAST_RATE, _MOST_RATE = 1_000, 768_000
"""Hz; a header that says less or more is broken."""
EXPECTED_SOUND = "expected a sound file (wav, mp3, m4a, flac, ogg, or a video with sound)"
_ADVICE = "convert it to wav or mp4"


def open_container(source: FileSource | ByteRanges, *, expected: str, name: str = "") -> Any:
    """Open a demuxer. Raises InputError, which begins with what was `expected`."""
    import av

    name = name or source_name(source)
    how: Any = {"options": {"protocol_whitelist": "file"}, "metadata_errors": "replace"}
    try:
        if isinstance(source, bytes):
            return av.open(io.BytesIO(source), **how)
        if isinstance(source, ByteRanges):
            return av.open(source, **how)
        # "file:" keeps a colon in the name from being read as a protocol.
        return av.open(f"file:{name}", **how)
    except FileNotFoundError as error:
        what = NOT_A_FILE if is_address(name) else "which does not exist; check the path"
        raise InputError(f"{expected}, got {shortened(name)}, {what}") from error
    except IsADirectoryError as error:
        raise InputError(f"{expected}, got {name}, a folder; name a file in it") from error
    except PermissionError as error:
        raise InputError(
            f"{expected}, got {name}, which may not be read; check its permissions"
        ) from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InputError(f"{expected}, got {name}, {_what_it_is(source)}") from error


def source_name(source: FileSource | ByteRanges) -> str:
    """Return what to call a source in a message."""
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    return str(source) if isinstance(source, ByteRanges) else os.fspath(source)


def _what_it_is(source: FileSource | ByteRanges) -> str:
    """Return the second half of a sentence about a file that FFmpeg does not open."""
    head = b""
    if not isinstance(source, ByteRanges):
        try:
            with open_bytes(source) as file:
                head = file.read(HEAD_BYTES)
        except (OSError, ValueError) as error:
            return f"which cannot be read ({error})"
    if not head:
        return "which is empty; record or download it again"
    kind = kind_of(head)
    if not kind or "sound" in kind or "video" in kind:
        return f"which {f'begins as {kind} and' if kind else 'is not one or'} is broken; {_ADVICE}"
    return f"which is not one: it looks like {kind}; {_ADVICE}"


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
        self._promised_s: float | None = 0.0
        self._unread_s = 0.0
        self._undecoded: list[str] = []

    def blocks(self) -> Iterator[Samples]:
        """Yield [channels, n] blocks.

        Raises InputError: unreadable, no sound, no decoder, NaN, a change of rate.
        """
        found = sound_parts(self._source)
        self._unread_s = found.unread_s
        for number, part in enumerate(found.parts):
            if number and not self._continues(part):
                continue
            for block in self._decode(part):
                self.num_samples += block.shape[1]
                yield block
        if found.is_wav:
            self._promised_s = found.promised_s

    def _decode(self, part: FileSource | ByteRanges) -> Iterator[Samples]:
        """Yield the blocks of the first track that gives any, the container's choice before the others."""
        with self._open(part) as container:
            order = self._tracks(container)
        for index in order:
            before = self.num_samples
            with self._open(part) as container:
                yield from self._track(container, container.streams[index])
            if self.num_samples > before:
                return

    def _open(self, part: FileSource | ByteRanges) -> Any:
        if isinstance(part, ByteRanges):
            part.seek(0)
        return open_container(part, expected=EXPECTED_SOUND, name=source_name(self._source))

    def _tracks(self, container: Any) -> list[int]:
        """Return the tracks that can be decoded. Raises InputError where there are none."""
        name = source_name(self._source)
        tracks = list(container.streams.audio)
        if not tracks:
            raise InputError(f"{EXPECTED_SOUND}, got {name}, which has no sound in it")
        best = container.streams.best("audio")
        tracks.sort(
            key=lambda track: track is not best and best is not None and track.index != best.index
        )
        usable = [track.index for track in tracks if track.codec_context is not None]
        codes = sample_codes(self._source)
        self._undecoded = [
            codes[track.index] if track.index < len(codes) else "of an unknown kind"
            for track in tracks
            if track.codec_context is None
        ]
        if not usable:
            raise InputError(
                f"{EXPECTED_SOUND}, got {name}, whose sound ({', '.join(self._undecoded)}) has no "
                f"decoder here; {_ADVICE}"
            )
        return usable

    def _track(self, container: Any, stream: Any) -> Iterator[Samples]:
        promised = _promised_s(container, stream)
        if promised is None or self._promised_s is None:
            self._promised_s = None
        else:
            self._promised_s += promised
        raw = self._float_blocks(self._frames(container, stream))
        if not _states_length(container, stream):
            return raw
        length_s = stream.duration * stream.time_base
        return _without_padding(raw, lambda: round(length_s * self.rate))

    def _continues(self, part: FileSource | ByteRanges) -> bool:
        """Return whether a further file in this one is of the same kind; counts it as unread if not."""
        with self._open(part) as container:
            stream = container.streams.best("audio")
            if stream is not None and stream.codec_context is not None and stream.rate == self.rate:
                return True
            self._unread_s += container.duration / 1e6 if container.duration else 0.0
            return False

    def to_stereo(self, block: Samples) -> Samples:
        """Mix [channels, n] to at most two channels."""
        if self.num_channels <= 2:
            return block
        mixed: Samples = stereo_weights(self._channel_names) @ block
        return mixed

    def warn_of_losses(self) -> None:
        """Log what of the file could not be used; after the last block."""
        name, decoded_s = source_name(self._source), self.num_samples / self.rate
        if self._undecoded:
            codes = ", ".join(self._undecoded)
            _LOG.warning(
                "%s: a sound track (%s) has no decoder here; another track is used", name, codes
            )
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
        if self._unread_s > _LENIENT_S:
            _LOG.warning(
                "%s: about %.1f s lie behind the end that its header names, and are not used; open it in a "
                "sound editor and save it again",
                name,
                self._unread_s,
            )

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield decoded frames. A broken packet is skipped; where demuxing fails is the end."""
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
        """Yield frames of one kind, joined to about a second."""
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
        if not _LEAST_RATE <= frame.sample_rate <= _MOST_RATE:
            raise InputError(
                f"{EXPECTED_SOUND}, got {source_name(self._source)} with a sampling rate of "
                f"{frame.sample_rate} Hz: its header is broken; record it again"
            )
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
    """Return a whole sound, [n, channels] as in the file; its rate in Hz; when it starts, in seconds."""
    decoder = SoundDecoder(source)
    blocks = list(decoder.blocks())
    if not blocks:
        raise InputError(f"{EXPECTED_SOUND}, got {source_name(source)} without any samples")
    return np.concatenate(blocks, axis=1).T, decoder.rate, decoder.start_s


def to_float(samples: NDArray[Any]) -> Samples:
    """Convert PCM of any type to float32 in -1..1."""
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
    """Return whether the container's length counts; only MP4 has padding that the decoder leaves in."""
    return "mp4" in container.format.name and bool(stream.duration)


def _promised_s(container: Any, stream: Any) -> float | None:
    """Return how long the file says that it is, in seconds; None where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None
