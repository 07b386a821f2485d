"""The process around the library: environment variables and logging. The only reader of `os.environ`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

LOGGER_NAME = "lipcast"


def logger(name: str) -> logging.Logger:
    """The logger of one module, below "lipcast"."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


def cache_dir() -> Path:
    """Where downloaded models and prompt embeddings are kept: LIPCAST_HOME, or the user's cache."""
    home = os.environ.get("LIPCAST_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lipcast"


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that is started from here."""
    return {**os.environ, **changes}
