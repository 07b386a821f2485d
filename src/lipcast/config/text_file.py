"""The text of a file that a person wrote with any program.

Input: a path. Output: text without a byte order mark. UTF-8 is read, and UTF-16 and UTF-32 with a mark.
Raises InputError, which names the encoding that the bytes look like, or the program that the file is of.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from lipcast.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark begins alike.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "a spreadsheet (.xlsx or .ods) or a zip file; save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet (.xls); save it as CSV UTF-8"),
    (b"\x1f\x8b", "a compressed file; unpack it"),
    (b"%PDF", "a PDF; save it as text"),
    (b"{\\rtf", "formatted text (RTF); save it as plain text"),
)
_LEGACY = (
    ("Shift-JIS", rb"(?:[\x82\x83][\x40-\xf1])"),
    ("cp1251", rb"(?:[\xe0-\xff]{2})"),  # lower-case Cyrillic letters
    ("GBK", rb"(?:[\xb0-\xd7][\xa1-\xfe])"),  # the common Chinese characters
)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """Return bytes as text; `name` is used in messages. Raises InputError."""
    for begin, kind in _OTHER_FILES:
        if data.startswith(begin):
            raise InputError(f"{name}: expected plain text, found {kind}")
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(_wrong_encoding(data, name, error)) from error
    if "\0" in text:
        found = "UTF-16 without a mark" if data[:4].count(0) == 2 else "bytes that are no text"
        raise InputError(f"{name}: expected text in UTF-8, found {found}; save it as UTF-8")
    return text


def _wrong_encoding(data: bytes, name: str, error: UnicodeDecodeError) -> str:
    if error.encoding != "utf-8":
        return f"{name}: its text in {error.encoding} is damaged; save it as UTF-8"
    line = data.count(b"\n", 0, error.start) + 1
    likely = _likely_encoding(data)
    return (
        f"{name}, line {line}: the text is not in UTF-8; it looks like {likely}. Save it as UTF-8 "
        f'(spreadsheets call it "CSV UTF-8"), or convert it: iconv -f {likely} -t UTF-8 OLD > NEW'
    )


def _likely_encoding(data: bytes) -> str:
    """Return the encoding of most bytes above 127; cp1252, of western Windows, where none is found."""
    num_high = len(re.findall(rb"[\x80-\xff]", data))
    for encoding, pattern in _LEGACY:
        if sum(map(len, re.findall(pattern, data))) > num_high / 2:
            return encoding
    return "cp1252"
