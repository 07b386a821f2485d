"""The process around the library: environment variables and logging. The only reader of `os.environ`."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOGGER_NAME = "lipcast"


def logger(name: str) -> logging.Logger:
    """Return the logger of one module, below "lipcast"."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


def expand_home(path: Path) -> Path:
    """Return a path with its user's home in place of `~`, or as it is where nobody has such a home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def cache_dir() -> Path:
    """Return the folder of models, prompt embeddings and jobs: LIPCAST_HOME, or the user's cache.

    A user whose home is not there, or cannot be used, has it among the temporary files.
    """
    home = os.environ.get("LIPCAST_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "lipcast"
        return folder if _can_use(folder) else temporary_dir()
    except (OSError, RuntimeError):  # not allowed to look; no HOME, and no entry of this user id
        return temporary_dir()


def _can_use(folder: Path) -> bool:
    """Return whether a folder is there, or can be made. Raises OSError where it cannot be looked at."""
    if folder.is_dir():
        return os.access(folder, os.R_OK | os.X_OK)
    above = next(path for path in folder.parents if path.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def temporary_dir() -> Path:
    """Return this user's folder among the temporary files; one of this process if that is another's."""
    if not hasattr(os, "getuid"):
        return Path(tempfile.gettempdir()) / "lipcast"
    folder = Path(tempfile.gettempdir()) / f"lipcast-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if is_own else _private_dir()


@cache
def _private_dir() -> Path:
    return Path(tempfile.mkdtemp(prefix="lipcast-"))


@dataclass(frozen=True, slots=True)
class Launched:
    """This process among those that torchrun, or a launcher like it, has started together."""

    rank: int
    local_rank: int
    num_processes: int
    address: str
    """The host of rank 0."""


def launched() -> Launched | None:
    """Return what the launcher says; None where there is none, or where this is its only process."""
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    if None in found.values() or found["WORLD_SIZE"] == "1":
        return None
    rank = os.environ["RANK"]
    local_rank = os.environ.get("LOCAL_RANK", rank)
    return Launched(
        int(rank), int(local_rank), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    )


def allocator_is_configured() -> bool:
    """Return whether the user has settings for torch's allocator on GPUs."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    return any(os.environ.get(name) for name in names)


def secret(name: str) -> str | None:
    """Return a token, password or key from the variable `name`; None where it is not set."""
    return os.environ.get(name, "").strip() or None


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a process that is started from here."""
    return {**os.environ, **changes}
