"""Output files: whether they can be written, under which name, and by this process alone.

Input: what was given as an output. Output: a checked path, a claim on it, sentences for OutputError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from lipcast.errors import OutputError
from lipcast.media.lock import try_lock

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Muxer of each suffix."""
_DEFAULT_SUFFIX = ".mp4"
_MAX_NAME_BYTES = 255
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def container_of(path: Path) -> str:
    """Return the muxer's name for a path that `check_target` let pass."""
    return CONTAINERS[path.suffix.lower()]


def output_path(given: str | os.PathLike[str], automatic_name: str) -> tuple[Path, bool]:
    """Return the file that an output names, and whether its name is the automatic one.

    An existing folder, or a name that ends in a slash, means a file in it with the automatic name; a name
    without a suffix gets ".mp4". Raises OutputError for a device, a named pipe, and a name that is too long.
    """
    text, path = os.fspath(given), Path(given)
    _check_length(path)
    if path.is_dir() or text.endswith(("/", os.sep)):
        return path / automatic_name, True
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path} is a device or a named pipe, and a video needs a file; name a file such as out.mp4"
        )
    if path.suffix:
        return path, False
    path = path.with_name(path.name + _DEFAULT_SUFFIX)
    _check_length(path)
    return path, False


def numbered(path: Path) -> Iterator[Path]:
    """Yield the path itself, then the same name with _2, _3 and so on before the suffix."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")


def scratch_path(path: Path, suffix: str = "") -> Path:
    """Return a hidden name beside `path`, always the same and short however long its name is."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    return path.with_name(f".lipcast-{digest}{suffix}")


def check_target(path: Path) -> None:
    """Raise OutputError where writing would fail at once. Leaves the disk as it was."""
    _check_length(path)
    if path.suffix.lower() not in CONTAINERS:
        got = f'"{path.suffix}"' if path.suffix else "no suffix"
        raise OutputError(
            f"{path}: expected a name that ends in {', '.join(CONTAINERS)}, got {got}; rename it"
        )
    if not path.parent.is_dir():
        raise OutputError(f"{path}: expected an existing folder, got {path.parent}; create it")
    try:
        target = path.resolve()  # a link that leads nowhere yet must stay
        existed = target.exists()
        target.open("ab").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise explained(path, error) from error


def _check_length(path: Path) -> None:
    most = _MAX_NAME_BYTES
    if hasattr(os, "pathconf"):
        with suppress(OSError, ValueError):
            most = os.pathconf(path.parent, "PC_NAME_MAX")
    length = len(os.fsencode(path.name))
    if length > most:
        raise OutputError(
            f"{path}: the file's name is {length} bytes long, and this folder takes at most {most}; "
            "choose a shorter name"
        )


def explained(path: Path, error: Exception) -> OutputError:
    """Return the error of writing `path` as one sentence; for a full disk with what is free."""
    code: int = getattr(error, "errno", None) or 0
    reason = os.strerror(code) if code in errno.errorcode else str(error)
    if code not in _FULL:
        return OutputError(
            f"{path}: cannot be written ({reason}); check the folder and its permissions"
        )
    free_mib = shutil.disk_usage(path.parent).free / 2**20
    return OutputError(
        f"{path}: cannot be written ({reason}, {free_mib:.1f} MiB free in {path.parent}); make room or "
        "write elsewhere. What was finished is kept and plays"
    )


@contextmanager
def claimed(path: Path, *, automatic: bool = False) -> Iterator[Path]:
    """Hold an output file for this process; yields its path.

    A file that another process holds raises OutputError; with `automatic`, a name that is taken gets a number
    in its place. The file is created empty where it is not there, and removed where it is still empty at the
    end. An existing file is not touched.
    """
    file, path, is_new = _create(path) if automatic else _hold(path)
    try:
        yield path
    finally:
        if is_new:
            _remove_empty(path.resolve())
        if file is not None:
            file.close()
            if sys.platform == "win32":
                _lock_file(path.resolve()).unlink(missing_ok=True)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()


def _create(path: Path) -> tuple[BinaryIO | None, Path, bool]:
    """Create and hold the first name that is free."""
    for candidate in numbered(path):
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise explained(candidate, error) from error
        file, _, _ = _hold(candidate)
        return file, candidate, True
    raise AssertionError("the numbers never end")


def _hold(path: Path) -> tuple[BinaryIO | None, Path, bool]:
    """Lock an output, created if need be. Without a lock where the file system knows none."""
    target = path.resolve()
    is_new = not target.exists()
    while True:
        try:
            target.open("ab").close()
            file = try_lock(_lock_file(target))
        except OSError as error:
            if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                return None, path, is_new
            raise explained(path, error) from error
        if file is None:
            raise OutputError(
                f"{path}: another process is writing this file; choose another name, or wait until it is done"
            )
        if _is_at(file, _lock_file(target)):
            return file, path, is_new
        file.close()  # whoever held it has removed or replaced the file in the meantime


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock_file(target: Path) -> Path:
    """Return the file whose lock stands for `target`: itself, but on Windows, where locked files stay."""
    return scratch_path(target, ".lock") if sys.platform == "win32" else target
