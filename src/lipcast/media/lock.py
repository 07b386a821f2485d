"""A lock on a file, held until the file is closed or its process ends, on POSIX and on Windows.

Input: a path. Output: the open file that holds the lock. The system gives the lock back however the
process ends, so that no clock has to decide whether its holder is alive.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO


def try_lock(path: Path) -> BinaryIO | None:
    """Lock the file at `path`, made if it is not there; return it open, or None while another holds it.

    Raises OSError where the file cannot be opened or its file system knows no locks.
    """
    file = path.open("ab")
    try:
        _lock(file)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: BinaryIO) -> None:
    """Lock an open file; raise BlockingIOError while another process holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)  # A range of bytes is locked, from the position on: the same for everyone.
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
