"""What can go wrong around a job: a clear error or correct work, never a wrong file."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cheap_worker import CheapRenderer
from lipcast.errors import OutputError, UsageError
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.jobs.tasks import SegmentTask
from programs import started

Submit = Callable[..., str]
WORKER = Path(__file__).parents[1] / "cheap_worker.py"
FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HOLDS_THE_STORE = """
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def quiet(_: str) -> None:
    """Nobody listens."""


def test_a_disk_that_is_full_at_any_place(store: Store, submit: Submit, tmp_path: Path) -> None:
    """No file may grow beyond a limit: segments, the joined video, or the store itself give way."""
    submit(tmp_path / "whole.mp4", 4.0)
    assert run_jobs(store, CheapRenderer(), log=quiet) == 0
    whole = (tmp_path / "whole.mp4").read_bytes()
    for limit in (3000, len(whole) - 500):
        output = tmp_path / f"{limit}.mp4"
        name = submit(output, 4.0)
        with closing(sqlite3.connect(store.workspace / "jobs.sqlite")) as base:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        command = [sys.executable, "-c", FULL_DISK, str(limit), str(WORKER)]
        done = subprocess.run(
            [*command, str(store.workspace), "0"], capture_output=True, text=True, check=False
        )
        job = store.job(name)
        assert done.returncode != 0 and not output.exists()
        assert "File too large" in job.error or "OutputError" in done.stderr
        if job.state == "failed":
            store.retry(name)
        assert run_jobs(store, CheapRenderer(), log=quiet) == 0
        assert output.read_bytes() == whole


def test_an_output_that_cannot_be_written(
    store: Store, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, open_file = tmp_path / "out", Path.open

    def read_only(path: Path, mode: str = "r", *how: object, **more: object) -> object:
        if path.parent == folder and mode != "r":
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, mode, *how, **more)  # type: ignore[call-overload]

    folder.mkdir()
    name, renderer = submit(folder / "a.mp4", 2.0), CheapRenderer()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        assert run_jobs(store, renderer, log=quiet) == 1
    assert "check the folder and its permissions" in store.job(name).error
    assert not renderer.made and not any(folder.iterdir())  # found out before anything was made
    gone = submit(tmp_path / "gone" / "a.mp4", 2.0)
    assert run_jobs(store, renderer, log=quiet) == 1
    assert "expected an existing folder" in store.job(gone).error
    for job in (name, gone):
        store.retry(job)
    (tmp_path / "gone").mkdir()
    assert run_jobs(store, renderer, log=quiet) == 0
    assert (folder / "a.mp4").read_bytes() == (tmp_path / "gone" / "a.mp4").read_bytes()


@pytest.mark.parametrize(("held_s", "waits_s"), [(0.4, 120.0), (60.0, 0.2)])
def test_a_store_that_another_process_holds(
    store: Store, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    held_s: float, waits_s: float,
) -> None:  # fmt: skip
    monkeypatch.setattr("lipcast.jobs.store._BUSY_S", waits_s)
    name = submit(tmp_path / "a.mp4", 2.0)
    command = [sys.executable, "-c", HOLDS_THE_STORE, str(store.workspace / "jobs.sqlite")]
    with started([*command, str(held_s)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        if held_s < waits_s:
            assert run_jobs(store, CheapRenderer(), log=quiet) == 0
        else:
            with pytest.raises(OutputError, match=r"locked.*no other program holds the file"):
                run_jobs(store, CheapRenderer(), log=quiet)
            other.kill()
    assert run_jobs(store, CheapRenderer(), log=quiet) == 0
    assert store.job(name).state == "finished"


def test_several_processes_at_one_job(store: Store, submit: Submit, tmp_path: Path) -> None:
    name = submit(tmp_path / "a.mp4", 4.0)
    gate = tmp_path / "gate"
    command = [sys.executable, str(WORKER), str(store.workspace), "0.01", str(gate)]
    with started(command) as first, started(command) as second:
        while not store.segments(name):
            time.sleep(0.02)
        assert store.lease(name) is None
        with pytest.raises(UsageError, match="cancel it first"):
            store.remove(name)
        gate.touch()
        assert [worker.wait(200) for worker in (first, second)] == [0, 0]
    job = store.job(name)
    assert (job.state, job.lease, len(store.segments(name))) == ("finished", 1, 5)


def test_a_clock_that_goes_back(
    store: Store, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**9, 0, -3600))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(now)))
        names = [submit(tmp_path / f"{number}.mp4", 2.0) for number in range(3)]
        assert run_jobs(store, CheapRenderer(), log=quiet) == 0
    assert [job.id for job in store.jobs()] == names  # in the order in which they came
    assert [job.lease for job in store.jobs()] == [1, 1, 1]
    videos = {(tmp_path / f"{number}.mp4").read_bytes() for number in range(3)}
    assert len(videos) == 1


class Interrupted(CheapRenderer):
    """Two at a time; the fourth segment is when somebody presses Ctrl-C."""

    width = 2
    pressed = False

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        if len(self.made) >= 6 and not self.pressed:
            self.pressed = True
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        return super().render(request, task)


def test_ctrl_c_puts_all_jobs_back(store: Store, submit: Submit, tmp_path: Path) -> None:
    names = [submit(tmp_path / f"{number}.mp4") for number in range(3)]
    renderer = Interrupted(0.01)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(store, renderer, log=lambda _: None)
    assert {store.job(name).state for name in names} == {"waiting"}
    assert len(renderer.made) < 3 * 19, "it did not wait for the end of all"
    assert run_jobs(store, CheapRenderer(), log=lambda _: None) == 0
    assert {store.job(name).state for name in names} == {"finished"}
