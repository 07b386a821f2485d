"""The standard streams of a process whose parent has closed them, or whose reader is gone.

What cannot be printed must not decide over a video: notes on standard error are dropped, and so is output
for a reader that has gone (`| head`). Output that cannot be stored (a full disk) raises OutputError, once.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from lipcast.errors import OutputError


class _Output(io.FileIO):
    """Standard output or standard error. After an error it takes everything and writes nothing."""

    def __init__(self, descriptor: int, *, is_optional: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_optional = is_optional
        self._is_lost = False

    def write(self, data: Any, /) -> int:
        if not self._is_lost:
            try:
                return super().write(data) or 0
            except OSError as error:
                self._is_lost = True
                if not (self._is_optional or isinstance(error, BrokenPipeError)):
                    raise OutputError(
                        f"cannot print the result: {error.strerror}. What was made is kept."
                    ) from error
        return len(data)


def open_streams() -> None:
    """Replace standard output and standard error by ones that do not fail; open those that are closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file that is opened gets this number, and messages of libraries go into it.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _text(1, sys.stdout, is_optional=False)
    sys.stderr = _text(2, sys.stderr, is_optional=True)


def _text(descriptor: int, before: TextIO | None, *, is_optional: bool) -> TextIO:
    encoding = "utf-8" if before is None else before.encoding
    if before is not None:
        with suppress(OSError, ValueError):
            before.flush()
    raw = _Output(descriptor, is_optional=is_optional)
    # Of a name that the terminal's encoding does not have, the escapes are shown.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True
    )
