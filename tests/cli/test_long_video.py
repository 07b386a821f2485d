"""`lipcast generate` with a long sound: segments, an early end at any moment, and the same command again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from parsing import flags, parse

import lipcast
from lipcast.cli.long_video import MeteredRenderer, is_long
from lipcast.cli.main import main
from lipcast.cli.request import read_request
from lipcast.env import cache_dir
from lipcast.errors import OutputError, UsageError
from lipcast.jobs.store import Store
from lipcast.media.audio import open_audio
from lipcast.media.decode import SoundDecoder
from lipcast.media.video import read_video
from sounds import EXAMPLES, write_wav

NUM_BLOCKS, SEGMENT_BLOCKS = 5, 2
NUM_FRAMES = 58


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: lipcast.Lipcast) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPCAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("lipcast.api.load", lambda *_model, **_how: quick)
    write_wav(tmp_path / "voice.wav", NUM_BLOCKS * 0.48 - 0.1, 16_000)
    return tmp_path


def generate(*more: str, output: str = "a.mp4", segment: str = "1s") -> int:
    words = ["--image", str(EXAMPLES / "portrait_0.png"), "--audio", "voice.wav", "--size", "64*64"]
    words += ["--infer_frames", "16", "--device", "cpu", "--segment", segment, "-o", output]
    return main(["generate", *words, "--json", *more])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out))


def stop_after(monkeypatch: pytest.MonkeyPatch, num_blocks: int, error: BaseException) -> None:
    """The first run ends with `error` when so many blocks are made; the second does not."""
    count, left = MeteredRenderer._count, [num_blocks]

    def counted(self: MeteredRenderer, num_frames: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error
        count(self, num_frames)

    monkeypatch.setattr(MeteredRenderer, "_count", counted)


@pytest.mark.slow
def test_the_video_is_that_of_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, loaded: lipcast.Lipcast
) -> None:
    monkeypatch.setattr("lipcast.api.load", lambda *_model, **_how: loaded)
    assert generate(output="whole.mp4", segment="0") == 0
    whole = told(capsys)
    assert generate() == 0
    long = told(capsys)
    of_run = {"output", "frames_per_second", "time_to_first_frame_s", "elapsed_s", "seconds_by_part",
              "peak_rss_bytes", "job", "request"}  # fmt: skip
    assert {k: v for k, v in long.items() if k not in of_run} == {
        k: v for k, v in whole.items() if k not in of_run
    }
    assert long["frames"] == NUM_FRAMES
    parts = long["seconds_by_part"]
    assert set(parts) == set(whole["seconds_by_part"])  # type: ignore[call-overload]
    assert parts["mux_s"] < parts["dit_s"]  # type: ignore[index]
    ours, theirs = read_video("a.mp4"), read_video("whole.mp4")
    assert np.array_equal(ours.audio, theirs.audio)
    difference = np.abs(ours.frames.astype(np.int16) - theirs.frames).mean(axis=(1, 2, 3))
    assert difference.max() < 3, "key frames lie elsewhere, and nothing else differs"
    assert Store(cache_dir() / "jobs").jobs() == []


@pytest.mark.parametrize(
    ("num_blocks", "error", "exit_code"),
    [
        (3, KeyboardInterrupt(), 130),
        pytest.param(5, OutputError("disk full"), 6, marks=pytest.mark.slow),
    ],
)
def test_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_blocks: int,
    error: BaseException,
    exit_code: int,
) -> None:
    assert generate(output="whole.mp4") == 0
    whole = told(capsys)
    with monkeypatch.context() as patch:
        stop_after(patch, num_blocks, error)
        assert generate() == exit_code
    stopped = told(capsys)
    finished = num_blocks // SEGMENT_BLOCKS * SEGMENT_BLOCKS * 12
    assert stopped["frames"] == finished == len(read_video("a.mp4").frames)
    (job,) = Store(cache_dir() / "jobs").jobs()
    assert job.state == ("waiting" if exit_code == 130 else "failed")
    made: list[int] = []
    count = MeteredRenderer._count
    monkeypatch.setattr(
        MeteredRenderer, "_count", lambda self, n: (made.append(n), count(self, n))[1]
    )
    assert generate() == 0
    assert sum(made) == whole["frames"] - finished  # type: ignore[operator]
    assert told(capsys)["frames"] == whole["frames"]
    assert Path("a.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert {path.name for path in Path().glob("*.mp4*")} == {"a.mp4", "whole.mp4"}


@pytest.mark.slow
def test_what_is_drawn_anew_is_no_other_video(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--save_dir names a file after the time, and a negative seed is another one each time."""
    words = ["--image", str(EXAMPLES / "portrait_0.png"), "--audio", "voice.wav", "--size", "64*64",
             "--infer_frames", "16", "--segment", "1s", "--save_dir", "videos", "--base_seed", "-1",
             "--json"]  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        assert main(["generate", *words]) == 130
    stopped = told(capsys)
    assert main(["generate", *words]) == 0
    done = told(capsys)
    assert [done[key] for key in ("output", "seed", "job")] == [
        stopped[key] for key in ("output", "seed", "job")
    ]
    assert len(list(Path("videos").iterdir())) == 1


@pytest.mark.slow
def test_other_files_are_another_video(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        assert generate() == 130
        first = told(capsys)["job"]
        write_wav(Path("voice.wav"), 3.0, 16_000)
        stop_after(patch, 3, KeyboardInterrupt())
        assert generate() == 130
    assert told(capsys)["job"] != first


@pytest.mark.parametrize(
    "method",
    ["fail", *(pytest.param(name, marks=pytest.mark.slow) for name in ("job", "segments"))],
)
def test_what_is_finished_is_kept_without_the_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """The disk of the store is full: not even a failure can be noted in it."""

    def broken(*_given: object) -> None:
        raise OutputError("jobs.sqlite: disk I/O error")

    def stop(*_given: object) -> None:
        monkeypatch.setattr(Store, method, broken)
        raise OutputError("no room")

    monkeypatch.setattr(MeteredRenderer, "_count", once_full(stop))
    assert generate() == 6
    stopped = told(capsys)
    assert str(stopped["reason"]).startswith("no room")
    assert stopped["frames"] == len(read_video("a.mp4").frames) == 2 * SEGMENT_BLOCKS * 12


def once_full(stop: Callable[[], None]) -> Callable[[MeteredRenderer, int], None]:
    """Counts five blocks, then stops."""
    counted: list[int] = []

    def count(_self: MeteredRenderer, num_frames: int) -> None:
        counted.append(num_frames)
        if len(counted) == 2 * SEGMENT_BLOCKS + 1:
            stop()

    return count


@pytest.mark.slow
def test_a_voice_that_is_gone_is_no_reason_to_lose_segments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        Path("voice.wav").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(MeteredRenderer, "_count", once_full(stop))
    assert generate() == 130
    said = capsys.readouterr().err
    assert "finished segments are kept in" in said and "voice.wav" in said


@pytest.mark.slow
def test_an_interrupt_while_tidying_up_is_too_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lipcast.jobs.runner._prune", interrupted)
        assert generate() == 0
    assert told(capsys)["status"] == "finished"
    assert Store(cache_dir() / "jobs").jobs() == []


@pytest.mark.slow
def test_what_another_worker_has_finished_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        generate()
    told(capsys)
    assert main(["job", "run", "--quiet"]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 1, AssertionError("made again"))
        assert generate() == 0
    assert told(capsys)["frames"] == NUM_FRAMES


def test_a_cache_that_cannot_be_used_is_no_reason_against_a_video(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "home").touch()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert generate("--num_clip", "1") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["frames"] == 16
    assert "segments are kept in" in said.err and str(folder / "lipcast-") in said.err


def test_an_end_before_the_first_segment_says_what_it_always_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    assert generate() == 130
    assert not Path("a.mp4").exists()
    assert told(capsys)["status"] == "stopped"


@pytest.mark.slow
def test_two_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    stop = pytest.MonkeyPatch()
    with stop.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        generate()
    told(capsys)
    store = Store(cache_dir() / "jobs")
    lease = store.lease()
    assert lease is not None
    assert generate() == 2
    assert "another process" in capsys.readouterr().err
    lease.release()
    assert generate() == 0


@pytest.mark.parametrize(
    ("seconds", "more", "long"),
    [
        (13, {}, True),
        (11, {}, False),
        (13, {"segment": "0"}, False),
        (1, {"segment": "60s"}, True),
        (13, {"num_clip": "2"}, False),
        (13, {"num_clip": "9"}, True),
    ],
)
def test_what_is_long(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    more: dict[str, str],
    long: bool,
) -> None:
    monkeypatch.setattr("lipcast.cli.long_video.LONG_S", 12)
    voice = write_wav(folder / "long.wav", seconds, 16_000)
    given = {"image": str(EXAMPLES / "portrait_0.png"), "audio": str(voice), **more}
    assert asked(parse(*flags(**given))) is long


def asked(given: dict[str, Any]) -> bool:
    request = read_request(given)
    return is_long(request, lambda: (open_audio(request.audio),))


def test_processes_of_a_launcher_make_one_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast.cli.long_video.LONG_S", 1)
    words = {"image": str(EXAMPLES / "portrait_0.png"), "audio": str(folder / "voice.wav")}
    given = parse(*flags(**words))
    assert asked(given)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    assert not asked(given)
    with pytest.raises(UsageError, match=r"--segment: .* use --gpus"):
        asked(given | {"segment": 30.0})


@pytest.mark.parametrize("long_s", [1, 600])
def test_the_sound_is_measured_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, long_s: int
) -> None:
    """Its length decides whether there are segments; the session gets what was opened for that."""
    monkeypatch.setattr("lipcast.cli.long_video.LONG_S", long_s)
    write_wav(folder / "voice.wav", 0.5)
    model, opened = FakeModel(), list[object]()
    monkeypatch.setattr("lipcast.api.load", model.load)

    def counted(source: Any) -> SoundDecoder:
        opened.append(source)
        return SoundDecoder(source)

    monkeypatch.setattr("lipcast.media.audio.SoundDecoder", counted)
    words = ["--image", str(EXAMPLES / "portrait_0.png"), "--audio", "voice.wav", "-o", "a.mp4"]
    assert main(["generate", *words]) == 0
    assert len(opened) == 1
    assert sum(len(chunk.samples) for chunk in iter(model.asked.stream["audio"].read, None)) > 0
    assert len(opened) == 2
