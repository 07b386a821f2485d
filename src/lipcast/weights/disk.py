"""Small things about files on a disk: written whole or not at all, hashed, failures in words.

Inputs: paths and bytes. Invariant: a file under its own name is complete; one that is being written
has the suffix `TEMPORARY`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lipcast.errors import OutputError

TEMPORARY = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that becomes `path` when everything is on the disk.

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
