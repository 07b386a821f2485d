"""Jobs: killed at any moment they end in the same video; two workers never share one."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lipcast
from cheap_worker import CheapRenderer
from lipcast.cli.main import main
from lipcast.errors import CancelledError, LipcastError, OutputError, UsageError
from lipcast.jobs.local import LocalRenderer
from lipcast.jobs.runner import input_sha256, run_job, run_jobs
from lipcast.jobs.store import Segment, Store
from lipcast.jobs.tasks import SegmentTask
from lipcast.media.video import read_video
from programs import started

KILLS = 12
WORKER = Path(__file__).parents[1] / "cheap_worker.py"
Submit = Callable[..., str]


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    video = read_video(path)
    return video.frames, video.audio


def quiet(_: str) -> None:
    """Nobody listens."""


def _is_killed_after(seconds: float, command: list[str]) -> bool:
    """Run a command; return whether it had to be killed because it took longer."""
    with started(command) as worker:
        try:
            worker.wait(seconds)
        except subprocess.TimeoutExpired:
            worker.kill()
            return True
    return False


@pytest.mark.slow
def test_killed_at_any_moment_the_video_is_the_same(
    store: Store, submit: Submit, tmp_path: Path
) -> None:
    submit(tmp_path / "whole.mp4")
    began = time.monotonic()
    command = [sys.executable, str(WORKER), str(store.workspace), "0.02"]
    assert subprocess.run(command, check=False).returncode == 0
    lasts_s = time.monotonic() - began
    expected = decoded(tmp_path / "whole.mp4")
    moments, kills, number = random.Random(6), 0, 0
    while kills < KILLS:
        output = tmp_path / f"killed-{number}.mp4"
        name, number = submit(output), number + 1
        finished: dict[int, Segment] = {}
        while store.job(name).state != "finished":
            kills += _is_killed_after(moments.uniform(0.3, 1.1) * lasts_s, command)
            now = store.segments(name)
            # What was finished is not made again.
            assert all(now[key] == segment for key, segment in finished.items())
            finished = now
        frames, audio = decoded(output)
        assert np.array_equal(frames, expected[0]) and np.array_equal(audio, expected[1])
        assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
        result = json.loads(output.with_name(f"{output.name}.json").read_text())
        assert [segment["number"] for segment in result["segments"]] == list(range(10))
        assert result["sha256"] == input_sha256(output)
        run_jobs(store, CheapRenderer(), log=quiet)  # tidies up where the end of a job was cut off
        assert {path.name for path in store.folder(name).iterdir()} == {
            "lock",
            "log",
            "result.json",
        }


def test_each_job_goes_to_one_worker(store: Store, submit: Submit, tmp_path: Path) -> None:
    names = [submit(tmp_path / f"{i}.mp4", 3.0) for i in range(6)]
    command = [sys.executable, str(WORKER), str(store.workspace), "0.01"]
    with started(command) as first, started(command) as second, started(command) as third:
        assert [worker.wait(200) for worker in (first, second, third)] == [0, 0, 0]
    assert [(store.job(n).state, store.job(n).lease) for n in names] == [("finished", 1)] * 6


def test_the_clock_does_not_decide(
    store: Store, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(tmp_path / "a.mp4")
    lease = store.lease()
    assert lease is not None
    for clock in (0.0, 1e12):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        assert Store(store.workspace).lease() is None
    lease.release()
    later = store.lease()
    assert later is not None and later.job.lease == lease.job.lease + 1
    # A worker that was taken for dead changes nothing any more.
    with pytest.raises(CancelledError):
        store.add_segment(lease, Segment(0, "", "", {}))
    with pytest.raises(CancelledError):
        store.finish(lease)
    later.release()


def test_a_failed_job_says_why_and_goes_on(store: Store, submit: Submit, tmp_path: Path) -> None:
    class Fails(CheapRenderer):
        def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
            if task.end_block > 6:
                raise OutputError("the disk is full; make room")
            return super().render(request, task)

    name = submit(tmp_path / "a.mp4")
    assert run_jobs(store, Fails(), log=quiet) == 1
    assert (store.job(name).state, store.job(name).error) == (
        "failed",
        "the disk is full; make room",
    )
    assert not (tmp_path / "a.mp4").exists() and len(store.segments(name)) == 3
    assert store.lease() is None
    store.retry(name)
    renderer = CheapRenderer()
    assert run_jobs(store, renderer, log=quiet) == 0
    assert renderer.made == list(range(6, 19)) and (tmp_path / "a.mp4").exists()
    with pytest.raises(UsageError, match="failed or cancelled"):
        store.retry(name)


def test_damaged_segments_and_changed_inputs_are_noticed(
    store: Store, submit: Submit, tmp_path: Path, portrait: Path
) -> None:
    image = shutil.copy(portrait, tmp_path / "me.png")
    name = submit(tmp_path / "a.mp4", image=str(image), keep_segments=True)
    assert run_jobs(store, CheapRenderer(), log=quiet) == 0
    whole = (tmp_path / "a.mp4").read_bytes()
    damaged = store.folder(name) / "segment-00004.mp4"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again = submit(tmp_path / "b.mp4", image=str(image), keep_segments=True)
    for path in store.folder(name).glob("*-*"):
        store.folder(again).mkdir(exist_ok=True)
        shutil.copy(path, store.folder(again))
    lease = store.lease()
    assert lease is not None
    for segment in store.segments(name).values():
        store.add_segment(lease, segment)
    renderer = CheapRenderer()
    run_job(store, lease, renderer, log=quiet)
    lease.release()
    assert renderer.made == [8, 9] and (tmp_path / "b.mp4").read_bytes() == whole
    changed = submit(tmp_path / "c.mp4", sha256={str(image): input_sha256(Path(image))})
    Path(image).write_bytes(b"another picture")
    assert run_jobs(store, CheapRenderer(), log=quiet) == 1
    assert "was submitted" in store.job(changed).error


def test_space_is_checked_before(
    store: Store, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, renderer = submit(tmp_path / "a.mp4"), CheapRenderer()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    assert run_jobs(store, renderer, log=quiet) == 1
    assert "MiB are free" in store.job(name).error and not renderer.made


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database, " * 99)
    with pytest.raises(OutputError, match=r"cannot read and write .*jobs\.sqlite"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot keep jobs in"):
        Store(tmp_path / "file")


def command(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    """The JSON document of one command."""
    assert main([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_embedded_model_by_the_command_line(
    tmp_path: Path,
    portrait: Path,
    sound: Any,
    quick: lipcast.Lipcast,
    capsys: Any,
    monkeypatch: Any,
) -> None:
    """Made in one run, and in one run per segment: the same file."""
    monkeypatch.setattr("lipcast.api.load", lambda *_, **__: quick)
    rows = [{"output": str(tmp_path / f"{name}.mp4"), "prompt": "calm"} for name in "ab"]
    batch = tmp_path / "batch.jsonl"
    batch.write_text("\n".join(map(json.dumps, rows)))
    place = ("--workspace", tmp_path / "jobs")
    first, second = command(
        capsys, "job", "submit", "--image", portrait, "--audio", sound(1.4), "--size", "64*64",
        "--infer_frames", 16, "--segment", "0.48s", "--batch", batch, *place,
    )["jobs"]  # fmt: skip
    command(capsys, "job", "run", "--job", first, *place)
    for ends_at in (1, 2, 3):  # a worker that dies after every segment
        monkeypatch.setattr(LocalRenderer, "render", dying(LocalRenderer.render, after=1))
        with suppress(Died):
            run_jobs(Store(tmp_path / "jobs"), LocalRenderer(), log=quiet)
        monkeypatch.undo()
        monkeypatch.setattr("lipcast.api.load", lambda *_, **__: quick)
        assert len(Store(tmp_path / "jobs").segments(second)) == ends_at
    documents = command(capsys, "job", "run", *place)["jobs"]
    assert [job["state"] for job in documents] == ["finished", "finished"]
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert len(decoded(tmp_path / "a.mp4")[0]) == 35
    shown = command(capsys, "job", "show", second, *place)
    assert shown["request"]["options"]["seed"] == 420 and len(shown["segments"]) == 3
    command_words = ("job", "cancel", second, "--workspace", str(tmp_path / "jobs"))
    assert main(command_words) == 2
    batch.write_text('{"ouput": "x.mp4"}')
    assert main(["job", "submit", "--batch", str(batch), *map(str, place)]) == 3


class Died(BaseException):
    """As if the process had ended."""


def dying(make: Callable[..., Any], after: int) -> Callable[..., Any]:
    calls = [0]

    def dies(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise Died
        return make(*arguments)

    return dies


def test_cancelled_jobs_stop_and_can_be_removed(
    store: Store, submit: Submit, tmp_path: Path
) -> None:
    class Cancels(CheapRenderer):
        def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
            if task.end_block == 4:
                with pytest.raises(UsageError, match="cancel it first"):
                    store.remove(name)
                store.cancel(name)
            return super().render(request, task)

    name = submit(tmp_path / "a.mp4")
    assert run_jobs(store, Cancels(), log=quiet) == 0
    assert store.job(name).state == "cancelled" and not (tmp_path / "a.mp4").exists()
    assert len(store.segments(name)) == 1
    store.remove(name)
    assert store.jobs() == [] and not store.folder(name).exists()
    with pytest.raises(LipcastError, match="job list"):
        store.job(name)


def test_a_stream_is_written_if_asked(store: Store, submit: Submit, tmp_path: Path) -> None:
    name = submit(tmp_path / "a.mp4", 4.0, hls=True)
    assert run_jobs(store, CheapRenderer(), log=quiet) == 0
    playlist = Path(json.loads((tmp_path / "a.mp4.json").read_text())["hls"])
    assert len(read_video(playlist).frames) == len(read_video(tmp_path / "a.mp4").frames) == 108
    # Found to be impossible before any work is done.
    shutil.rmtree(playlist.parent)
    playlist.parent.write_text("something else")
    again = submit(tmp_path / "a.mp4", 4.0, hls=True)
    renderer = CheapRenderer()
    assert run_jobs(store, renderer, log=quiet) == 1
    assert "move it away" in store.job(again).error
    assert renderer.made == [] and store.job(name).state == "finished"


def test_a_store_of_an_earlier_version_is_migrated(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as base:
        base.executescript(
            "CREATE TABLE jobs (place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, "
            "state TEXT NOT NULL, request TEXT NOT NULL, claim INTEGER NOT NULL DEFAULT 0, "
            "num_segments INTEGER, error TEXT NOT NULL DEFAULT '', submitted_s REAL NOT NULL);"
            "CREATE TABLE segments (job TEXT NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, "
            "past_sha256 TEXT NOT NULL, report TEXT NOT NULL, PRIMARY KEY (job, number));"
            "INSERT INTO jobs (id, state, request, claim, submitted_s) "
            "VALUES ('old', 'running', '{}', 4, 0);"
            "INSERT INTO segments VALUES ('old', 0, 'a', 'b', '{}');"
        )
    store = Store(tmp_path)
    assert Store(tmp_path).job("old").lease == 4
    assert store.segments("old")[0].snapshot_sha256 == "b"
    lease = store.lease()
    assert lease is not None and lease.job.lease == 5
    lease.release()


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as base:
        base.execute("PRAGMA user_version = 9")
    with pytest.raises(OutputError, match="newer version of Lipcast has written these jobs"):
        Store(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_characters", [1, 2])
def test_a_directed_video_is_the_same_with_and_without_interruption(
    tmp_path: Path,
    portrait: Path,
    sound: Any,
    quick: lipcast.Lipcast,
    monkeypatch: Any,
    capsys: Any,
    num_characters: int,
) -> None:
    """A worker dies between segments; a prompt begins behind it, and its table is gone by then."""
    monkeypatch.setattr("lipcast.api.load", lambda *_, **__: quick)
    place = ("--workspace", tmp_path / "jobs")
    table = tmp_path / "prompts.csv"
    table.write_text("0.4;he laughs\n", "utf-8")
    clip = tmp_path / "clip"
    clip.mkdir()
    for n in range(20):
        Image.fromarray(np.full((64, 64, 3), 12 * n, np.uint8)).save(clip / f"{n}.png")
    clips = ("--pose_video", clip, "--pose_end", "loop", "--continue_from", clip)
    directed = (*clips, "--prompts", table)
    voices = ["--audio", sound(0.9)]
    if num_characters == 2:
        width, height = Image.open(portrait).size
        halves = [(f"{x},0,{width // 2},{height}", s) for x, s in ((0, 0.9), (width // 2, 0.4))]
        voices = [x for box, s in halves for x in ("--character", f"{box}:{sound(s)}")]
    names = []
    for output, more in (("a", directed), ("b", directed), ("c", ())):
        names += command(
            capsys, "job", "submit", "--image", portrait, *voices, "--size", "64*64",
            "--infer_frames", 16, "--segment", "0.48s", "-o", tmp_path / f"{output}.mp4", *more, *place,
        )["jobs"]  # fmt: skip
    table.unlink()
    command(capsys, "job", "run", "--job", names[0], *place)
    with monkeypatch.context() as patch:
        patch.setattr(LocalRenderer, "render", dying(LocalRenderer.render, after=1))
        with suppress(Died):
            run_jobs(Store(tmp_path / "jobs"), LocalRenderer(), log=quiet)
    assert len(Store(tmp_path / "jobs").segments(names[1])) == 1
    command(capsys, "job", "run", *place)
    first, second, plain = (decoded(tmp_path / f"{name}.mp4")[0] for name in "abc")
    assert np.array_equal(first, second)
    assert not np.array_equal(first[:12], plain[:12])
    table.write_text("0.4;he laughs\n", "utf-8")
    words = [
        "job", "submit", "--image", portrait, "--audio", sound(0.9), "--independent_segments",
        "--prompts", table, "-o", tmp_path / "d.mp4", *place,
    ]  # fmt: skip
    assert main(list(map(str, words))) == 2
    assert "which a directed video cannot" in capsys.readouterr().err
