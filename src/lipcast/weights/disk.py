"""Small things about files on a disk: written whole or not at all, hashed, failures in words.

Inputs: paths and bytes. Invariant: a file under its own name is complete; one that is being written
has the suffix `TEMPORARY`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lipcast.errors import CheckpointError, OutputError

TEMPORARY = ".part"
UNFINISHED = (
    ".incomplete",
    ".part",
    ".partial",
    ".crdownload",
    ".download",
    ".aria2",
    ".!qB",
    ".tmp",
)
"""Suffixes of a download that has not finished, of the programs that people use."""
_WEB_PAGE = re.compile(rb"<(!doctype|html|head|\?xml|!--)", re.IGNORECASE)
_ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")
_HEAD_BYTES = 256


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that becomes `path` when everything is on the disk.

    Raises OutputError if that fails; then `path` is as it was.
    """
    # Two processes may write the same file: each has its own until it is whole.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there; raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file, complete or not at all; raises OutputError."""
    with replacing(path) as file:
        file.write(text.encode())


def output_error(path: Path, error: OSError) -> OutputError:
    """Return what to tell the user about a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{path}: the disk is full; free some space and run the same command again, "
            "finished files are kept"
        )
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); choose another directory"
    )


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises ValueError for every text that is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_there(path: Path) -> bool:
    """Return whether a path exists; a name that no file can have does not."""
    try:
        return path.exists()
    except OSError:  # too long
        return False


def check_downloaded(path: Path) -> bytes:
    """Return the first bytes of a file; raises CheckpointError for what a download leaves instead.

    That is a web page, an answer of the server, a git-lfs pointer, an archive, nothing at all.
    """
    if not is_there(path) or not path.is_file():
        raise CheckpointError(f"{path}: no such file; download the model or correct the path")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    _check_placeholder(path, head, size)
    return head


def _check_placeholder(path: Path, head: bytes, size: int) -> None:
    text = head.lstrip()
    if not text:
        raise CheckpointError(f"{path}: the file is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: this is a git-lfs pointer, not the file; run `git lfs pull` or download it"
        )
    if _WEB_PAGE.match(text):
        raise CheckpointError(
            f"{path}: this is a web page, not the file; the download was refused or redirected, "
            "download it again"
        )
    if is_there(path.with_name(f"{path.name}.aria2")) or not head.strip(b"\0"):
        raise CheckpointError(
            f"{path}: the download has not finished; continue it, or download the file again"
        )
    if head.startswith(_ARCHIVES):
        raise CheckpointError(f"{path}: this is an archive; unpack it, and give what is inside")
    words = head.decode("latin-1").strip()
    is_text = len(words) >= 8 and words.isascii() and words.isprintable()
    if is_text and size < _HEAD_BYTES and path.suffix != ".json":
        raise CheckpointError(
            f'{path}: this is a short text, "{words[:80]}", not weights; download the file again'
        )
