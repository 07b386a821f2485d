"""The process around the library: environment variables and logging. The only reader of `os.environ`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Launched:
    """This process among those that torchrun, or a launcher like it, has started together."""

    rank: int
    local_rank: int
    num_processes: int
    address: str
    """The host of rank 0."""


def launched() -> Launched | None:
    """What the launcher says; None where there is none, or where this is its only process."""
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


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that is started from here."""
    return {**os.environ, **changes}
