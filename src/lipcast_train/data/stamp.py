"""What tells one set of training files from another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
_READ_SUFFIXES = VIDEO_SUFFIXES | {".txt"}


def stamp_of(path: Path) -> str:
    """Return name, size and time of a file, or of all that a folder has to train on."""
    found: Iterable[Path] = (path,)
    if path.is_dir():
        found = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in _READ_SUFFIXES)
    stats = ((file.name, file.stat()) for file in found if file.is_file())
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
