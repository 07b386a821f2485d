"""The chunks of a WAV file (RIFF, RIFX, RF64, BW64), read as they lie and not as they should.

Input: an open file. Output: `WavLayout`: the ranges of its sound, and a header that a decoder reads them by.
Found besides the ordinary: several `data` chunks; further WAV files of the same kind behind the first;
lengths that are placeholders; `data` before `fmt `; odd chunks without their pad byte; big-endian samples;
samples in a larger container than their bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

Range = tuple[int, int]

_KINDS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}
_PCM, _FLOAT, _ALAW, _ULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_AU_ENCODINGS = {(_PCM, 8): 2, (_PCM, 16): 3, (_PCM, 24): 4, (_PCM, 32): 5, (_FLOAT, 32): 6, (_FLOAT, 64): 7,
                 (_ULAW, 8): 1, (_ALAW, 8): 27}  # fmt: skip
"""Codes of Sun's AU format, which holds big-endian samples, by format and bits."""
_SAMPLE_BYTES = (1, 2, 3, 4, 8)
_UNKNOWN = 0xFFFF_FFFF
_PLACEHOLDER = 0x7FFF_0000
"""Lengths from here on are those that programs write for "not known yet"."""
_ROUND = (10**6, 2**24)
_HEADER_SIZES = (0, 8, 36, 44)
"""Bytes that programs add to a placeholder, or take off it."""
_LONG_S, _LONG_RATIO = 3600.0, 20.0
"""A sound that claims more than an hour, and 20 times what is there, has a placeholder for its length."""
_SEARCH_BYTES = 1 << 20
_MAX_FORMAT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Format:
    """The `fmt ` chunk."""

    raw: bytes
    order: str
    """ "<" or ">", as in `struct`."""

    @property
    def fields(self) -> tuple[int, int, int, int, int, int]:
        """Tag, channels, Hz, bytes per second, bytes of a sample of all channels, bits."""
        return struct.unpack_from(f"{self.order}HHIIHH", self.raw)

    @property
    def tag(self) -> int:
        """The codec's number; that of the subformat where there is one."""
        tag = self.fields[0]
        if tag == _EXTENSIBLE and len(self.raw) >= 26:
            return int.from_bytes(self.raw[24:26], "little" if self.order == "<" else "big")
        return tag

    @property
    def bytes_per_s(self) -> float:
        """By rate and size of a sample where that is exact, else as the header says."""
        _, channels, rate, stated, align, _ = self.fields
        if self.tag in {_PCM, _FLOAT, _ALAW, _ULAW}:
            return float(rate * align)
        return (
            float(stated) or rate * channels / 2
        )  # as the 4-bit codecs, whose writers may leave it out

    def repaired(self) -> bytes:
        """Return the chunk with as many bits as the samples' container has."""
        _, channels, _, _, align, bits = self.fields
        known = self.tag in {_PCM, _FLOAT} and channels and align % channels == 0
        if not known or align // channels not in _SAMPLE_BYTES:
            return self.raw
        container = struct.pack(f"{self.order}H", 8 * (align // channels))
        raw = self.raw
        if bits <= 8 * (align // channels):
            raw = raw[:14] + container + raw[16:]
        if self.fields[0] == _EXTENSIBLE and len(raw) >= 20:
            raw = raw[:18] + container + raw[20:]
        return raw


@dataclass(frozen=True, slots=True)
class WavLayout:
    """Ranges of a WAV file that are its sound."""

    format: Format
    ranges: tuple[Range, ...]
    promised_s: float | None
    """By the lengths of the `data` chunks; None where one of them is unknown."""
    unread_s: float
    """Duration of the bytes outside of all chunks."""
    is_unusual: bool
    """Whether the decoder needs `header` to see all of it."""

    def header(self) -> bytes:
        """Return the header of a file that holds the ranges and nothing else."""
        if self.format.order == ">":
            return self._au_header()
        length = min(sum(end - start for start, end in self.ranges), _UNKNOWN)
        raw = self.format.repaired()
        raw += bytes(len(raw) % 2)
        body = b"WAVEfmt " + struct.pack("<I", len(raw)) + raw + b"data" + struct.pack("<I", length)
        return b"RIFF" + struct.pack("<I", min(len(body) + length, _UNKNOWN)) + body

    def _au_header(self) -> bytes:
        _, channels, rate, _, _, bits = self.format.fields
        code = _AU_ENCODINGS[self.format.tag, bits]
        return b".snd" + struct.pack(">IIIII", 24, _UNKNOWN, code, rate, channels)


def wav_layout(file: BinaryIO, size: int) -> WavLayout | None:
    """Read the chunks; None where it is no WAV file, or none with a format and samples."""
    scan = _Scan(file, size)
    if not scan.run() or scan.format is None:
        return None
    per_s = scan.format.bytes_per_s
    if per_s <= 0:
        return None
    return WavLayout(
        format=scan.format,
        ranges=tuple(scan.ranges),
        promised_s=None if scan.promised is None else scan.promised / per_s,
        unread_s=scan.unread / per_s,
        is_unusual=scan.is_unusual or scan.format.repaired() != scan.format.raw,
    )


class _Scan:
    """One walk over the chunks."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.format: Format | None = None
        self.ranges: list[Range] = []
        self.promised: int | None = 0
        self.unread = 0
        self.is_unusual = False
        self._long_length: int | None = None
        """Size of the samples, by the `ds64` chunk of an RF64 file."""

    def run(self) -> bool:
        """Walk the chunks; returns whether there is a sound."""
        position = self._begin(0)
        if position is None:
            return False
        while position is not None and position + 8 <= self._size:
            position = self._chunk(position)
        return bool(self.ranges)

    def _begin(self, position: int) -> int | None:
        """Return where the chunks of a file that begins here begin; None where none does."""
        head = self._read(position, 12)
        if head[:4] not in _KINDS or head[8:12] != b"WAVE":
            return None
        self._order = _KINDS[head[:4]]
        self.is_unusual |= position > 0 or self._order == ">"
        return position + 12

    def _chunk(self, position: int) -> int | None:
        """Take in one chunk; returns where the next one begins, None at the end of what is understood."""
        name = self._read(position, 4)
        length = self._number(self._read(position + 4, 4))
        start = position + 8
        if name == b"data":
            return self._data(start, length)
        if name == b"fmt ":
            found = Format(self._read(start, min(length, _MAX_FORMAT_BYTES)), self._order)
            if not self._takes(found):
                self.unread += self._size - position
                return None
        elif name == b"ds64":
            self._long_length = int.from_bytes(self._read(start + 8, 8), "little")
        elif (inner := self._begin(position)) is not None:
            return inner
        elif not _is_name(name):
            return self._search(position)
        elif name != b"fact":
            self.is_unusual = True  # notes, for whose mistakes the decoder would refuse the sound
        return self._behind(start + length)

    def _takes(self, found: Format) -> bool:
        """Take a format; returns False where it is broken or differs from the one before."""
        if len(found.raw) < 16:
            return False
        if self.format is None:
            self.format = found
            self.is_unusual |= bool(self.ranges)
            return found.order == "<" or (found.tag, found.fields[5]) in _AU_ENCODINGS
        return found == self.format

    def _data(self, start: int, length: int) -> int | None:
        rest = self._size - start
        if length == _UNKNOWN and self._long_length is not None:
            length = self._long_length
        self.is_unusual |= bool(self.ranges)
        if self._is_unknown(start, length, rest):
            end = self._next_file(start)
            self.promised = None
        else:
            end = start + min(length, rest)
            self.promised = None if self.promised is None else self.promised + length
        if end > start:
            self.ranges.append((start, end))
        return self._behind(end)

    def _is_unknown(self, start: int, length: int, rest: int) -> bool:
        """Return whether a length is a placeholder."""
        if length == 0:
            return rest > 0 and not _is_name(self._read(start, 4))
        if length <= rest:
            return False
        if length >= _PLACEHOLDER or _is_round(length):
            return True
        per_s = self.format.bytes_per_s if self.format else 0.0
        return per_s > 0 and length / per_s > _LONG_S and length > _LONG_RATIO * rest

    def _behind(self, end: int) -> int:
        """Return where a chunk follows one that ends here: odd ones have a pad byte, or should have."""
        if end % 2 == 0:
            return end
        if _is_name(self._read(end + 1, 4)) or not _is_name(self._read(end, 4)):
            return end + 1
        self.is_unusual = True
        return end

    def _search(self, position: int) -> int | None:
        """Return where another file begins behind what is no chunk; else count that as unread."""
        found = self._next_file(position)
        self.unread += found - position
        return found if found < self._size else None

    def _next_file(self, start: int) -> int:
        """Return where a further WAV file begins; the end of the file where none does."""
        for first in range(start, self._size, _SEARCH_BYTES):
            block = self._read(first, _SEARCH_BYTES + 16)
            for at in _all(block, b"WAVEfmt "):
                if at >= 8 and block[at - 8 : at - 4] in _KINDS:
                    return first + at - 8
        return self._size

    def _number(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little" if self._order == "<" else "big")

    def _read(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        return self._file.read(count)


def _all(block: bytes, wanted: bytes) -> Iterator[int]:
    at = block.find(wanted)
    while at >= 0:
        yield at
        at = block.find(wanted, at + 1)


def _is_name(raw: bytes) -> bool:
    """Return whether four bytes may be the name of a chunk."""
    return len(raw) == 4 and all(32 <= byte < 127 for byte in raw) and raw.strip() != b""


def _is_round(length: int) -> bool:
    """Return whether a length is a round number, give or take the size of a header."""
    return any(
        (length + sign * more) % unit == 0
        for unit in _ROUND
        for more in _HEADER_SIZES
        for sign in (1, -1)
    )
