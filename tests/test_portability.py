"""What Windows and macOS lack is not needed where a video is made, and is refused by name elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from lipcast.errors import NotBuiltError
from lipcast.jobs.runner import _sync
from lipcast.lab import sampler
from lipcast.media.lock import try_lock
from lipcast.parallel.rank_group import spawn

IMPORT_ALL = """
import builtins, importlib, pkgutil, sys

NEED_THEIR_HOST = {f"lipcast.integrations.{name}" for name in ("comfyui", "livekit", "pipecat")}
POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
real_import = builtins.__import__

def no_posix(name, globals=None, *rest, **others):
    importer = (globals or {}).get("__name__", "")
    if name in POSIX_ONLY and importer.startswith("lipcast"):
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return real_import(name, globals, *rest, **others)

builtins.__import__ = no_posix
import lipcast
names = [module.name for module in pkgutil.walk_packages(lipcast.__path__, "lipcast.")]
for name in names:
    if name in NEED_THEIR_HOST:
        continue
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_is_imported_without_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


def test_the_import_of_a_posix_module_is_noticed() -> None:
    start, _, _ = IMPORT_ALL.partition("import lipcast\n")
    code = f"{start}exec('import fcntl', {{'__name__': 'lipcast.jobs.store'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "lipcast.jobs.store imports fcntl" in done.stderr


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that says it is Windows, with locks on ranges of bytes."""

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        assert (mode, num_bytes) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")


def check_lock(path: Path) -> None:
    """One holder at a time, and the next after the file is closed."""
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    first.close()
    again: BinaryIO | None = try_lock(path)
    assert again is not None
    again.close()


def test_lock_has_one_holder(tmp_path: Path) -> None:
    check_lock(tmp_path / "lock")


@pytest.mark.usefixtures("windows")
def test_lock_has_one_holder_on_windows(tmp_path: Path) -> None:
    check_lock(tmp_path / "lock")


def test_lock_of_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "missing" / "lock")


@pytest.mark.usefixtures("windows")
def test_several_gpus_are_refused_on_windows() -> None:
    here, there = Pipe()
    with here, there, pytest.raises(NotBuiltError, match="WSL"):
        spawn(0, there)


def test_folders_are_not_opened_on_windows(
    tmp_path: Path, windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real_open = os.open

    def watched(path: Path, flags: int) -> int:
        assert flags & os.O_RDWR, "Windows writes nothing through a descriptor that only reads"
        opened.append(path)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", watched)
    (tmp_path / "file").write_text("x")
    _sync(tmp_path)
    _sync(tmp_path / "file")
    assert opened == [tmp_path / "file"]


def test_peak_memory_has_the_unit_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=3_000_000)
    monkeypatch.setattr(sampler, "_STATUS", Path("missing"))
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert sampler.own_peak_rss_bytes() == 3_000_000 * (1 if sys.platform == "darwin" else 1024)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sampler.own_peak_rss_bytes() == 3_000_000
