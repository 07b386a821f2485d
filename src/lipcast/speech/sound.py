"""Pieces of speech as 16-bit samples, and WAV files of them, written and read while they come."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import InputError
from lipcast.media.decode import read_sound

_MAX_BYTES = 64 * 2**20
"""Of a sound that has to be complete before it can be decoded: twenty minutes of 16-bit mono at 24 kHz."""
_HEAD_BYTES = 2**16
_PCM = 1
_ENDLESS = 2**62


@dataclass(frozen=True, slots=True)
class Sound:
    """A piece of speech."""

    samples: NDArray[np.int16]
    """[n], one channel."""
    sample_rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.sample_rate


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return samples from -1..1 as 16-bit samples."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)


def wav_bytes(sounds: Iterable[Sound]) -> bytes:
    """Return the pieces, which share their rate, as a WAV file."""
    pieces = list(sounds)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(pieces[0].sample_rate)
        for piece in pieces:
            file.writeframes(piece.samples.astype("<i2").tobytes())
    return content.getvalue()


class SoundReader:
    """Reads sound while it comes: 16-bit WAV, one file after the other, at once; others at their end.

    The others are what FFmpeg reads.
    """

    def __init__(self, *, raw_rate: int = 0) -> None:
        """`raw_rate`: sampling rate of 16-bit mono without a header; 0: it is a file."""
        self._waiting = bytearray()
        self._rate, self._num_channels = raw_rate, int(raw_rate > 0)
        self._left: int | None = _ENDLESS if raw_rate else None
        """Bytes of samples to come; None before they begin."""

    @property
    def head(self) -> bytes:
        """What has come of a file that is no 16-bit WAV: its first bytes."""
        return bytes(self._waiting[:_HEAD_BYTES])

    def push(self, content: bytes) -> list[Sound]:
        """Take more of the file; returns the samples that it completes. Raises InputError."""
        self._waiting += content
        found: list[Sound] = []
        while self._has_begun() and (sound := self._taken()) is not None:
            found.append(sound)
        return found

    def finish(self) -> list[Sound]:
        """Return the rest. Raises InputError where the content is no sound."""
        if self._left is not None or not self._waiting:
            return []
        samples, rate, _ = read_sound(bytes(self._waiting))
        return [Sound(to_int16(samples.mean(axis=1)), rate)]

    def _has_begun(self) -> bool:
        """Return whether samples come next; looks for another file where those of one have ended."""
        if self._left is not None:
            if self._left >= 2 * self._num_channels:
                return True
            at = self._waiting.find(b"RIFF")
            del self._waiting[: at if at >= 0 else max(0, len(self._waiting) - 3)]
        if self._begin():
            return True
        if len(self._waiting) > _MAX_BYTES:
            raise InputError(
                f"expected a sound of at most {_MAX_BYTES >> 20} MiB, got more; send 16-bit WAV"
            )
        return False

    def _taken(self) -> Sound | None:
        assert self._left is not None
        frame = 2 * self._num_channels
        count = min(len(self._waiting), self._left) // frame * frame
        if count == 0:
            return None
        content = bytes(self._waiting[:count])
        del self._waiting[:count]
        self._left -= count
        samples = np.frombuffer(content, "<i2").reshape(-1, self._num_channels)
        mono = samples[:, 0] if self._num_channels == 1 else samples.mean(axis=1)
        return Sound(mono.astype(np.int16), self._rate)

    def _begin(self) -> bool:
        """Read the chunks in front of the samples; True where the samples begin, and are 16-bit."""
        waiting = self._waiting
        if len(waiting) < 12 or waiting[:4] != b"RIFF" or waiting[8:12] != b"WAVE":
            return False
        at, is_readable = 12, False
        while len(waiting) >= at + 8:
            name, length = struct.unpack_from("<4sI", waiting, at)
            at += 8
            if name == b"data":
                if not is_readable:
                    return False
                del waiting[:at]
                self._left = length if 0 < length < 2**31 - 2**20 else _ENDLESS
                return True
            if name == b"fmt " and len(waiting) >= at + 16:
                kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", waiting, at)
                is_readable = (kind, bits) == (_PCM, 16) and channels in {1, 2} and rate >= 1000
                self._num_channels, self._rate = channels, rate
            at += length + length % 2
        return False
