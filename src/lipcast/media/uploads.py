"""Sounds that strangers send: read within bounds, and never followed to other files.

Input: a file that was uploaded. Output: its length, or a copy of its beginning. Playlists and other lists of
files are refused: FFmpeg would open what they name.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lipcast.errors import InputError
from lipcast.media.decode import EXPECTED_SOUND, SoundDecoder
from lipcast.media.resample import Samples
from lipcast.media.target import explained

FORMATS = (
    "aac", "ac3", "aiff", "amr", "asf", "avi", "caf", "eac3", "flac", "flv", "matroska", "mov", "mp3",
    "mpegts", "ogg", "w64", "wav",
)  # fmt: skip
"""Containers that may be uploaded, by FFmpeg's names: those that hold their sound themselves."""
_FULL_SCALE = 32_767


def sound_length_s(path: Path, *, max_s: float) -> float:
    """Return the length of an uploaded sound, decoded up to `max_s`. Raises InputError."""
    _check_format(path)
    decoder = SoundDecoder(path)
    for _ in decoder.blocks():
        if decoder.num_samples > max_s * decoder.rate:
            raise InputError(
                f"audio_reference: expected at most {max_s:g} s of sound, got more; cut it, or give `seconds`"
            )
    if not decoder.num_samples:
        raise InputError(f"{EXPECTED_SOUND}, got one without any samples; record it again")
    return decoder.num_samples / decoder.rate


def cut_sound(path: Path, to: Path, *, seconds: float) -> None:
    """Write the first seconds of an uploaded sound as 16-bit WAV. Raises InputError, OutputError."""
    _check_format(path)
    decoder = SoundDecoder(path)
    blocks = _first(decoder, seconds)
    first = next(blocks, None)
    if first is None:
        raise InputError(f"{EXPECTED_SOUND}, got one without any samples; record it again")
    try:
        with wave.open(str(to), "wb") as file:
            file.setnchannels(len(first))
            file.setsampwidth(2)
            file.setframerate(decoder.rate)
            for block in (first, *blocks):
                clipped = np.clip(block.T, -1, 1) * _FULL_SCALE
                file.writeframes(np.rint(clipped).astype("<i2").tobytes())
    except OSError as error:
        raise explained(to, error) from error


def _first(decoder: SoundDecoder, seconds: float) -> Iterator[Samples]:
    """Yield the blocks of the first seconds, of at most two channels."""
    num_given = 0
    for block in decoder.blocks():
        left = round(seconds * decoder.rate) - num_given
        yield decoder.to_stereo(block[:, :left])
        num_given += block.shape[1]
        if left <= block.shape[1]:
            return


def _check_format(path: Path) -> None:
    import av

    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="replace"):
            return
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InputError(
            f"{EXPECTED_SOUND}, got one that is none of these, or is broken"
        ) from error
