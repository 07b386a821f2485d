"""Kinds of files by their first bytes, for messages about files that are not what they are given as.

Input: a path or the first bytes of a file. Output: words such as "a HEIC picture" or "a web page (HTML)".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HEAD_BYTES = 4096
"""Number of bytes of a file that `kind_of` looks at."""
NOT_A_FILE = "is an address, not a file on this machine; download it first and give the file"
HEIC, AVIF = "a HEIC picture", "an AVIF picture"

_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/|(https?|ftps?|s3|gs|hf|file|blob):/", re.ASCII
)
_MAX_SHOWN = 100
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture or a camera's raw file"),
    (0, b"MM\0*", "a TIFF picture or a camera's raw file"),
    (0, b"II+\0", "a BigTIFF picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"\xff\xfb", "an MP3 sound"),
    (0, b"fLaC", "a FLAC sound"),
    (0, b"OggS", "an Ogg sound or video"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (0, b"#!AMR", "an AMR sound"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (0, b"\x00\x00\x01\xba", "an MPEG video"),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, and not the file itself (run `git lfs pull`)",
    ),
)
_RIFF = {b"WAVE": "a WAV sound", b"AVI ": "an AVI video", b"WEBP": "a WebP picture"}
_BRANDS: Mapping[str, frozenset[bytes]] = {
    HEIC: frozenset(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
    ),
    AVIF: frozenset((b"avif", b"avis")),
    "a camera's raw file (CR3)": frozenset((b"crx ",)),
    "an M4A sound": frozenset((b"M4A ", b"M4B ")),
    "a QuickTime video": frozenset((b"qt  ",)),
}
_MARKUP = (
    (re.compile(rb"<svg[\s>]", re.I), "an SVG drawing"),
    (re.compile(rb"<(!doctype html|html|head|body)\b", re.I), "a web page (HTML)"),
    (re.compile(rb"<(\?xml|[a-z])", re.I), "an XML document"),
)


def is_address(text: str) -> bool:
    """Return whether a text is the address of something on a network, such as https://…"""
    return bool(_ADDRESS.match(text))


def shortened(text: str) -> str:
    """Return a text for a message, cut where it is long: a `data:` address may hold a whole picture."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def kind_of(head: bytes) -> str:
    """Return what a file is by its first bytes; "" where they tell nothing."""
    if not head.strip(b"\0"):
        return "nothing but zeros" if head else ""
    if head[:4] in {b"RIFF", b"RIFX", b"RF64"}:
        return _RIFF.get(head[8:12], "a RIFF file")
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    return _kind_of_text(head)


def _by_brand(head: bytes) -> str:
    """Return what an ISO base media file is: the major brand counts first, then the compatible ones."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, size - 3, 4))]
    general = {b"mif1", b"msf1"}  # any picture in this container; the other brands say which
    for brand in sorted(brands, key=lambda brand: brand in general):
        for kind, known in _BRANDS.items():
            if brand in known:
                return kind
    return "an MP4 video or sound"


def _kind_of_text(head: bytes) -> str:
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return "a text file (UTF-16)"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<"):
        return next((kind for found, kind in _MARKUP if found.search(start)), "")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:
            return ""
        text = head[: error.start].decode("utf-8")
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return ""
    return "a JSON document" if start[:1] in {b"{", b"["} else "a text file"
