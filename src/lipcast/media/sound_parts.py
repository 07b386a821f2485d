"""Parts of a file that hold its sound, found before FFmpeg decodes it: WAV chunks, joined files.

Input: a path or the bytes of a file. Output: `SoundParts`: what to decode in order, how long the file says
that it is, and how much lies where no decoder looks. A length that is a placeholder, as programs write that
do not know it yet, is an unknown length: the sound goes on to the end of the file.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from lipcast.media.wav_chunks import WavLayout, wav_layout

FileSource = str | os.PathLike[str] | bytes
"""A path, or the content of a file."""
_MOST_INDEX_BYTES = 1 << 24
_SAMPLE_CODE = re.compile(rb"stsd.{12}([\x20-\x7e]{4})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SoundParts:
    """Parts to decode, one after the other."""

    parts: tuple[FileSource | ByteRanges, ...]
    promised_s: float | None = None
    """By the header of a WAV file; None where the header does not say."""
    unread_s: float = 0.0
    """Duration of the bytes that no part holds."""
    is_wav: bool = False
    """Whether `promised_s` counts: of other files the decoder knows."""


class ByteRanges(io.RawIOBase):
    """Some bytes, then ranges of another file, as one file to read."""

    def __init__(self, head: bytes, file: BinaryIO, ranges: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self._head, self._file, self._ranges = head, file, ranges
        self._length = len(head) + sum(end - start for start, end in ranges)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = self._length - self._position if size < 0 else size
        found = []
        while left > 0 and (piece := self._piece(left)):
            found.append(piece)
            self._position += len(piece)
            left -= len(piece)
        return b"".join(found)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _piece(self, most: int) -> bytes:
        """Return bytes from the position on, of one range only; empty at the end."""
        if self._position < len(self._head):
            return self._head[self._position : self._position + most]
        offset = self._position - len(self._head)
        for start, end in self._ranges:
            if offset < end - start:
                self._file.seek(start + offset)
                return self._file.read(min(most, end - start - offset))
            offset -= end - start
        return b""


def sound_parts(source: FileSource) -> SoundParts:
    """Return what of a file to decode. What is neither WAV nor several files in one is left as it is."""
    try:
        with open_bytes(source) as file:
            size = file.seek(0, os.SEEK_END)
            layout = wav_layout(file, size)
            starts = [] if layout else list(_starts(file, size))
    except (OSError, ValueError):  # opening it once more will say what is wrong
        return SoundParts((source,))
    if layout is not None:
        return _of_wav(source, layout)
    if len(starts) > 1:
        borders = pairwise([*starts, size])
        return SoundParts(tuple(_window(source, border) for border in borders))
    return SoundParts((source,))


def sample_codes(source: FileSource) -> list[str]:
    """Return the codes of the codecs of an MP4 or MOV file, track by track; empty for other files."""
    try:
        with open_bytes(source) as file:
            size = file.seek(0, os.SEEK_END)
            found = next(_boxes(file, size, b"moov"), None)
            if found is None:
                return []
            file.seek(found)
            index = file.read(_MOST_INDEX_BYTES)
    except (OSError, ValueError):
        return []
    return [code.decode("latin-1").strip() for code in _SAMPLE_CODE.findall(index)]


def open_bytes(source: FileSource) -> BinaryIO:
    """Open a source for reading its bytes."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _of_wav(source: FileSource, layout: WavLayout) -> SoundParts:
    part: FileSource | ByteRanges = source
    if layout.is_unusual:
        part = ByteRanges(layout.header(), open_bytes(source), layout.ranges)
    return SoundParts((part,), layout.promised_s, layout.unread_s, is_wav=True)


def _window(source: FileSource, border: tuple[int, int]) -> ByteRanges:
    return ByteRanges(b"", open_bytes(source), (border,))


def _starts(file: BinaryIO, size: int) -> Iterator[int]:
    """Yield where each of several MP4 or AIFF files in one begins."""
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp":
        yield from _boxes(file, size, b"ftyp")
    elif head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}:
        yield from _forms(file, size)


def _boxes(file: BinaryIO, size: int, kind: bytes) -> Iterator[int]:
    """Yield the positions of the boxes of a kind at the top of an ISO base media file."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if header[4:8] == kind:
            yield position
        if length < 8:  # 0: to the end of the file
            return
        position += length


def _forms(file: BinaryIO, size: int) -> Iterator[int]:
    position = 0
    while position + 12 <= size:
        file.seek(position)
        header = file.read(12)
        if header[:4] != b"FORM" or header[8:12] not in {b"AIFF", b"AIFC"}:
            return
        yield position
        length = int.from_bytes(header[4:8], "big")
        position += 8 + length + length % 2
