"""Processes without standard streams, users without a home, other locales: none decides over the video."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fake_model import FakeModel
from PIL import Image

from lipcast.cli.main import main
from lipcast.env import cache_dir
from lipcast.media.video import read_video
from sounds import write_wav

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
SCRIPT = (
    "import sys; sys.path.insert(0, {tests!r})\n"
    "import lipcast.api; from fake_model import FakeModel; from lipcast.cli import main\n"
    "lipcast.api.load = FakeModel().load\n"
    "sys.argv[0] = 'lipcast'; main.run()"
)
COMMAND = "generate --image me.png --audio hello.wav -o out.mp4 --json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64)).save(tmp_path / "me.png")
    write_wav(tmp_path / "hello.wav", 1.92)
    (tmp_path / "lipcast.py_").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return tmp_path


def shell(folder: Path, line: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `lipcast` makes videos of nothing. None removes a variable."""
    environment = {**os.environ, **{k: v for k, v in changes.items() if v is not None}}
    for name in (name for name, value in changes.items() if value is None):
        environment.pop(name, None)
    start = f'lipcast() {{ {shlex.quote(sys.executable)} lipcast.py_ "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", start + line], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("streams", "exit_code"),
    [
        ("2>&-", 0),
        pytest.param("2>/dev/full", 0, marks=pytest.mark.slow),
        (">/dev/full", 6),
        pytest.param("1>&-", 0, marks=pytest.mark.slow),
        pytest.param("0<&- 1>&- 2>&-", 0, marks=pytest.mark.slow),
        pytest.param("| head -c 1", 0, marks=pytest.mark.slow),
        pytest.param("| true; exit ${PIPESTATUS[0]}", 0, marks=pytest.mark.slow),
    ],
)
def test_no_stream_decides_over_the_video(folder: Path, streams: str, exit_code: int) -> None:
    done = shell(folder, f"lipcast {COMMAND} {streams}")
    assert done.returncode == exit_code, done.stderr
    assert len(read_video(folder / "out.mp4").frames) == 48
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if exit_code:
        assert "cannot print the result: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "locale",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_prompt_and_names_in_chinese_in_any_locale(folder: Path, locale: dict[str, str]) -> None:
    (folder / "me.png").rename(folder / "肖像.png")
    line = "lipcast generate --image 肖像.png --audio hello.wav -o 影片.mp4 --prompt 一个冷静的人 --json"
    done = shell(folder, line, TERM="dumb", NO_COLOR="1", LC_ALL="C", **locale)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request"]["prompt"] == "一个冷静的人"
    assert (folder / "影片.mp4").is_file()


def test_a_user_id_without_an_entry_and_without_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(_id: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "LIPCAST_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lipcast.api.load", FakeModel().load)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert main(COMMAND.split()) == 0
    assert cache_dir().parent == folder
    assert main(["models"]) == 0
    assert main(["generate", "--image", "~/me.png", "--audio", "hello.wav"]) == 3
    assert "~/me.png does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not IS_ROOT, reason="another user cannot be taken on")
@pytest.mark.parametrize(
    "home",
    [
        "/root",
        *(pytest.param(h, marks=pytest.mark.slow) for h in ("/", "/nowhere/at/all", "a file")),
    ],
)
def test_a_home_that_cannot_be_used(folder: Path, home: str) -> None:
    """As another user, whom HOME, set for root, shuts out."""
    (folder / "a file").touch()
    (folder / "lipcast.py_").write_text(
        "import logging, os, torch\n"
        "from lipcast.env import cache_dir; from lipcast.weights.checkpoint import checkpoint_dir\n"
        "from lipcast.weights.prompts import PromptCache, PromptEmbedding\n"
        "from lipcast.weights import hub\n"
        "checkpoint_dir('tiny'); os.setgid(12345); os.setuid(12345)\n"
        "cache = PromptCache(cache_dir() / 'prompts')\n"
        "cache.put(PromptEmbedding(torch.zeros(3, 64), 'calm', 'x'))\n"
        "assert len(cache.get('calm', 'x')) == 3\n"
        "print(len(hub.list_models()), 'models')"
    )
    unset = {"XDG_CACHE_HOME": None, "LIPCAST_HOME": None}
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        Path(temporary).chmod(0o777)
        done = shell(folder, "lipcast", HOME=str(folder / home), TMPDIR=temporary, **unset)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 models\n", "")
        assert (Path(temporary) / "lipcast-12345" / "prompts").is_dir()


@pytest.mark.parametrize("flag", ["--model", "--lora", "--image", "--audio", "--save_dir"])
def test_a_tilde_of_nobody_is_a_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.chdir(folder)
    files = {"--image": "me.png", "--audio": "hello.wav", flag: "~nobody-of-this-name/x"}
    words = [word for pair in files.items() for word in pair]
    monkeypatch.setattr("lipcast.api.load", FakeModel().load)
    assert main(["generate", *words]) in {0, 3, 4}
    assert "defect" not in capsys.readouterr().err


@pytest.mark.parametrize("seed", [2**64, 2**64 + 1, 10**20 - 1, 10**400])
def test_seeds_have_a_bound_that_is_told_before_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lipcast.api.load", lambda *_, **__: pytest.fail("loaded"))
    files = ("--image", "me.png", "--audio", "hello.wav")
    assert main(["generate", *files, "--seed", str(seed)]) == 2
    assert f"seed: expected a whole number of at most {2**64 - 1}" in capsys.readouterr().err
    (folder / "jobs.csv").write_text(f"image,audio,output,Seed\nme.png,hello.wav,o.mp4,{seed}\n")
    assert main(["job", "submit", "--batch", "jobs.csv", "--workspace", "work"]) == 2
    assert "row 2: seed: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--num_clip", "--start_frame", "--cond_distance", "--infer_frames"]
)
def test_counts_have_a_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.chdir(folder)
    assert (
        main(["generate", "--image", "me.png", "--audio", "hello.wav", flag, str(4 * 10**20)]) == 2
    )
    assert flag.removeprefix("--") in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--vram", "--ram", "--segment", "--size", "--sample_shift"])
def test_numbers_without_end_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.chdir(folder)
    files = ("--image", "me.png", "--audio", "hello.wav")
    assert main(["generate", *files, flag, "9" * 400]) == 2
    assert "defect" not in capsys.readouterr().err
