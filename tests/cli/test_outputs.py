"""Names of outputs: folders, devices, long names, and two commands at one time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime as real_datetime
from pathlib import Path
from typing import Any

import pytest
from fake_model import FRAMES, NUM_BLOCKS, FakeModel
from PIL import Image

from certificates import write_certificate
from lipcast.cli.main import main
from lipcast.errors import InputError, OutputError, UsageError
from lipcast.media.signing import read_manifest
from lipcast.media.target import claimed
from lipcast.media.video import iter_frames
from programs import started
from sounds import write_wav


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "me.png")
    write_wav(tmp_path / "hello.wav", 0.5)
    monkeypatch.setattr("lipcast.api.load", FakeModel().load)
    return tmp_path


def generate(*more: str) -> int:
    return main(["generate", "--image", "me.png", "--audio", "hello.wav", *more])


def videos(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))


def num_frames(path: Path) -> int:
    return sum(1 for _ in iter_frames(path))


@pytest.mark.parametrize("output", ["outs", "outs/", "outs.mp4", "new/", "new/er/", "."])
def test_a_folder_means_a_file_in_it(files: Path, output: str) -> None:
    (files / "outs").mkdir()
    (files / "outs.mp4").mkdir()
    assert generate("-o", output, "--prompt", "calm") == 0
    (video,) = (path for path in files.rglob("*.mp4") if path.is_file())
    assert video.parent == (files / output).resolve()
    assert video.name.endswith("_calm.mp4")
    assert num_frames(video) == NUM_BLOCKS * FRAMES


@pytest.mark.skipif(sys.platform == "win32", reason="no devices with paths")
@pytest.mark.parametrize("output", ["/dev/null", "/dev/zero", "pipe", "pipe.mp4"])
def test_devices_and_pipes_are_refused(
    files: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipe", "pipe.mp4"):
        os.mkfifo(files / name)
    assert generate("-o", output) == 6
    assert "is a device or a named pipe" in capsys.readouterr().err
    assert not Path("/dev/null.mp4").exists()
    assert videos(files) == ["pipe.mp4"]


@pytest.mark.parametrize("length", [249, 250, 255])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_long_names_work(files: Path, length: int, suffix: str) -> None:
    name = "长" * ((length - 4) // 3)
    name += "x" * (length - 4 - len(name.encode())) + suffix
    assert len(name.encode()) == length
    assert generate("-o", name) == 0
    assert num_frames(files / name) == NUM_BLOCKS * FRAMES
    joined = "y" + name[1:] if len(name[0].encode()) == 1 else "yyy" + name[1:]
    assert main(["concat", name, name, "-o", joined]) == 0
    assert num_frames(files / joined) == 2 * NUM_BLOCKS * FRAMES
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("command", [generate, lambda *more: main(["concat", "a.mp4", *more])])
def test_too_long_a_name_is_refused_before_the_work(
    files: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-o", "x" * 253) == 6  # .mp4 makes it 257
    assert "257 bytes long, and this folder takes at most 255" in capsys.readouterr().err


def test_automatic_names_that_are_taken_get_a_number(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Frozen(real_datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Frozen:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("lipcast.cli.request.datetime", Frozen)
    for _ in range(3):
        assert generate("--save_dir", "sd", "--prompt", "calm", "--json") == 0
    names = [f"20260102_030405_calm{number}.mp4" for number in ("", "_2", "_3")]
    assert videos(files / "sd") == names
    told = json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]
    assert Path(told["output"]).name == names[0]
    assert main(["job", "submit", "--workspace", "ws", "--batch", _batch(files)]) == 0
    one = ("--image", "me.png", "--audio", "hello.wav", "--save_dir", "jobs")
    assert main(["job", "submit", "--workspace", "ws", *one]) == 0
    capsys.readouterr()
    assert main(["job", "list", "--workspace", "ws", "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    names = [f"20260102_030405{number}.mp4" for number in ("", "_2", "_3", "_4")]
    assert sorted(Path(job["output"]).name for job in jobs) == names


def _batch(files: Path) -> str:
    path = files / "jobs.jsonl"
    row = {"image": "me.png", "audio": "hello.wav", "save_dir": "jobs"}
    path.write_text("\n".join([json.dumps(row)] * 3))
    return str(path)


_HOLD = """
import sys, time
from pathlib import Path
from lipcast.media.target import claimed
with claimed(Path(sys.argv[1]), automatic=sys.argv[2] == "automatic") as path:
    print(path.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str = "") -> Iterator[str]:
    """The name of an output that another process holds until the block is left."""
    command = [sys.executable, "-c", _HOLD, str(path), how]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child.stdout.readline().strip()
        child.communicate("")


@pytest.mark.parametrize("verb", ["generate", "concat"])
def test_a_file_that_another_process_writes_is_refused(
    files: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("-o", "a.mp4") == 0
    command = ["concat", "a.mp4", "a.mp4", "-o", "out.mp4"]
    run = (lambda: main(command)) if verb == "concat" else (lambda: generate("-o", "out.mp4"))
    with held(files / "out.mp4") as name:
        assert name == "out.mp4"
        assert run() == 6
        assert "out.mp4: another process is writing this file" in capsys.readouterr().err
    assert not (files / "out.mp4").exists()  # it was empty
    assert run() == 0
    assert num_frames(files / "out.mp4") > 0


def test_two_processes_with_one_automatic_name_get_two_files(files: Path) -> None:
    holders = [held(files / "talk.mp4", "automatic") for _ in range(3)]
    with ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        names = list(threads.map(stack.enter_context, holders))
    assert sorted(names) == ["talk.mp4", "talk_2.mp4", "talk_3.mp4"]


def test_a_claim_leaves_what_is_there(files: Path) -> None:
    precious = files / "out.mp4"
    precious.write_bytes(b"precious")
    with claimed(precious), pytest.raises(OutputError), claimed(precious):
        raise AssertionError
    assert precious.read_bytes() == b"precious"
    with claimed(files / "new.mp4"):
        (files / "new.mp4").write_bytes(b"video")
    assert (files / "new.mp4").read_bytes() == b"video"
    (files / "link.mp4").symlink_to(files / "later.mp4")
    with claimed(files / "link.mp4"):
        pass
    assert (files / "link.mp4").is_symlink()
    assert not (files / "later.mp4").exists()


@pytest.mark.parametrize("option", ["--image", "--audio", "-o", "--save_dir", "--decoder"])
@pytest.mark.parametrize(
    "address", ["https://example.org/x.png", "s3://bucket/x.wav", "data:image/png;base64,AAAA"]
)
def test_addresses_are_refused(
    files: Path, option: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(option, address) == 3
    said = capsys.readouterr().err
    assert f"{address} is an address" in said
    assert "download it first" in said
    assert sorted(path.name for path in files.iterdir()) == ["hello.wav", "me.png"]


def test_a_signed_video(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain, key = write_certificate(files / "c")
    assert generate("-o", "talk.mp4", "--sign", str(chain), str(key)) == 0
    assert read_manifest(files / "talk.mp4")["validation_state"] == "Valid"
    assert num_frames(files / "talk.mp4") == NUM_BLOCKS * FRAMES
    assert generate("-o", "talk.mkv", "--sign", str(chain), str(key)) == UsageError.exit_code
    assert generate("-o", "new.mp4", "--sign", str(key), str(chain)) == InputError.exit_code
    assert "is no certificate in PEM" in capsys.readouterr().err
    assert not (files / "new.mp4").exists()
