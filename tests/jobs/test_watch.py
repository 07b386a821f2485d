"""What people and programs are told of jobs: the table, the log, the webhook."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

import pytest

from cheap_worker import CheapRenderer
from lipcast.cli.main import main
from lipcast.errors import UsageError
from lipcast.jobs.progress import progress
from lipcast.jobs.runner import input_sha256, run_jobs
from lipcast.jobs.store import Job, Segment, Store

Submit = Callable[..., str]


def quiet(_: str) -> None:
    """Nobody listens."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """A URL on this machine, and what was posted to it; under /bad it answers 500."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            posted.append((self.path, json.loads(self.rfile.read(length))))
            self.send_response(500 if self.path == "/bad" else 204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            """Nothing is printed."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", posted
        listening.shutdown()
        thread.join()


def test_a_webhook_is_told_how_a_job_ended(
    store: Store, submit: Submit, server: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, posted = server
    output = tmp_path / "a.mp4"
    done = submit(output, 2.0, webhook=f"{url}/done")
    lost = submit(tmp_path / "b.mp4", 2.0, webhook=f"{url}/bad", sha256={__file__: "another"})
    unheard = submit(tmp_path / "c.mp4", 2.0, webhook="http://127.0.0.1:9/")
    assert run_jobs(store, CheapRenderer(), log=quiet) == 1
    (path, document), (bad_path, failed) = posted
    assert path == "/done" and document == {
        "job": done, "output": str(output), "state": "finished", "frames": 60,
        "sha256": input_sha256(output),
    }  # fmt: skip
    assert (bad_path, failed["job"], failed["state"]) == ("/bad", lost, "failed")
    assert "was submitted" in failed["error"]
    # A webhook that fails is a line in the log, and nothing else.
    assert "500" in (store.folder(lost) / "log").read_text()
    assert store.job(unheard).state == "finished"
    assert "webhook http://127.0.0.1:9/: " in (store.folder(unheard) / "log").read_text()


def test_the_log_holds_every_step(store: Store, submit: Submit, tmp_path: Path) -> None:
    name, told = submit(tmp_path / "a.mp4", 2.0), []
    run_jobs(store, CheapRenderer(), log=told.append)
    lines = (store.folder(name) / "log").read_text().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == told and len(told) == 5
    assert "segment 3 of 3" in told[3] and "2.40 s" in told[4]


def test_watch_draws_a_table(
    store: Store, submit: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = submit(tmp_path / "a.mp4", 2.0)
    place = ("--workspace", str(store.workspace))
    assert main(("job", "watch", "--once", *place)) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in (name, "waiting", "0/?", "frames/s"))
    run_jobs(store, CheapRenderer(), log=quiet)
    assert main(("job", "watch", *place)) == 0  # nothing is left to watch
    table = capsys.readouterr().out
    assert all(word in table for word in (name, "finished", "3/3", "0:00:00"))
    submit(tmp_path / "b.mp4", 2.0, sha256={__file__: "another"})
    run_jobs(store, CheapRenderer(), log=quiet)
    assert main(("job", "watch", *place)) == 1
    capsys.readouterr()
    assert main(("job", "watch", "--json", *place)) == 0
    good, bad = json.loads(capsys.readouterr().out)["jobs"]
    assert (good["num_frames"], good["num_done"]) == (60, 3)
    assert bad["state"] == "failed" and "was submitted" in bad["error"]


def test_what_is_left_follows_from_what_is_done() -> None:
    segments = [Segment(n, "", "", {"frames": 24, "elapsed_s": 2.0}) for n in range(3)]
    job = Job("a", "running", {}, 10, "", 0.0, 1)
    found = progress(job, segments)
    assert (found.num_frames, found.frames_per_s, found.eta_s) == (72, 12.0, 14.0)
    assert progress(job, []).eta_s is None and progress(job, []).frames_per_s is None


def test_a_webhook_must_be_a_url(portrait: Path, sound: Any, tmp_path: Path) -> None:
    files = ("--image", str(portrait), "--audio", str(sound(1)), "-o", str(tmp_path / "a.mp4"))
    for url in ("file:///etc/passwd", "example", "http://"):
        words = ("job", "submit", *files, "--webhook", url, "--workspace", str(tmp_path))
        assert main(words) == UsageError.exit_code


@pytest.mark.parametrize("verb", [["list"], ["watch", "--once"]])
def test_many_jobs_are_asked_for_at_once(
    store: Store, submit: Submit, tmp_path: Path, verb: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    done = submit(tmp_path / "a.mp4", 2.0)
    run_jobs(store, CheapRenderer(), log=quiet)
    request = dict(store.job(done).request)
    names = store.submit([request] * 300)
    queries: list[str] = []
    connect, here = sqlite3.connect, get_ident()

    def counted(path: Any, **how: Any) -> sqlite3.Connection:
        base = connect(path, **how)
        if store.workspace.name in str(path) and get_ident() == here:
            base.set_trace_callback(queries.append)
        return base

    monkeypatch.setattr(sqlite3, "connect", counted)
    assert main(["job", *verb, "--workspace", str(store.workspace), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["job"] for job in told] == [done, *names]
    assert (told[0].get("num_done") or len(told[0]["segments"])) == 3
    assert sum(query.startswith("SELECT") for query in queries) == 2
