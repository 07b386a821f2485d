"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def run_process(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"import sys; sys.argv = ['lipcast', *{arguments!r}]; from lipcast.cli.main import run; run()"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
