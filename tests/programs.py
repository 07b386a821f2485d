"""Programs that tests start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: list[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program that ends with the block, however the block is left; `Popen` itself waits for it."""
    with subprocess.Popen(command, **how) as process:
        try:
            yield process
        finally:
            process.kill()
