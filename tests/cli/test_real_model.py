"""The command with the embedded model: a whole video, bad input, a full disk, an interrupt."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

import lipcast
from lipcast.api import Lipcast
from lipcast.cli.main import main
from lipcast.media.video import read_video
from programs import started

EXAMPLES = Path(__file__).parents[2] / "examples"
PORTRAIT = str(EXAMPLES / "portrait_0.png")
TINY = Path(lipcast.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def model() -> Lipcast:
    return lipcast.load("tiny", device="cpu")


@pytest.fixture
def loaded(model: Lipcast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded once for all tests that are not about loading it."""
    monkeypatch.setattr("lipcast.api.load", lambda *_model, **_how: model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "hello.wav", 0.7)
    return tmp_path


def write_wav(path: Path, seconds: float) -> None:
    time_s = np.arange(int(16_000 * seconds)) / 16_000
    samples = (8000 * np.sin(2 * np.pi * 150 * time_s) * np.sin(2 * np.pi * 3 * time_s)).astype(
        np.int16
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())


def generate(*more: str) -> int:
    return main(["generate", "--image", PORTRAIT, "--audio", "hello.wav", "--device", "cpu", *more])


@pytest.mark.usefixtures("loaded")
def test_public_flags_make_a_video(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = ["--task", "s2v-14B", "--ulysses_size", "1", "--offload_model", "True", "--single_gpu",
              "--sample_steps", "3", "--sample_guide_scale", "0", "--num_clip", "10000",
              "--infer_frames", "24", "--sample_solver", "euler", "--num_gpus_dit", "1",
              "--convert_model_dtype", "--enable_online_decode", "--base_seed", "-1",
              "--save_file", "a.mp4"]  # fmt: skip
    assert generate(*public, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 18
    assert told["steps"] == 2
    assert len(told["accepted"]) == 6
    assert told["seed"] >= 0
    video = read_video("a.mp4")
    assert video.frames.shape == (18, 256, 256, 3)
    assert video.frames[0].std() > 10
    assert len(video.audio) == pytest.approx(0.72 * video.sample_rate, abs=2)


@pytest.mark.parametrize(
    ("flags", "exit_code", "word"),
    [
        (("--image", "empty"), 3, "expected a picture"),
        (("--image", "words.txt"), 3, "expected a picture"),
        (("--audio", "empty"), 3, "expected a sound"),
        (("--audio", "words.txt"), 3, "expected a sound"),
        (("--audio", "silent.wav"), 3, "samples"),
        (("--audio", PORTRAIT), 3, "sound"),
    ],
)
@pytest.mark.usefixtures("loaded")
def test_unusable_inputs(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    exit_code: int,
    word: str,
) -> None:
    (folder / "empty").touch()
    (folder / "words.txt").write_text("a poem")
    write_wav(folder / "silent.wav", 0)
    check_one_sentence(flags, exit_code, word, capsys)


@pytest.mark.parametrize(
    ("flags", "exit_code", "word"),
    [
        (("--model", "nowhere"), 4, "nowhere"),
        (("--model", "."), 4, "config.json"),
        (("--device", "abacus"), 2, "device: expected"),
        (("--precision", "fp3"), 2, "'fp3' is not one of"),
    ],
)
def test_models_that_cannot_be_loaded(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    exit_code: int,
    word: str,
) -> None:
    assert folder.is_dir()
    check_one_sentence(flags, exit_code, word, capsys)


def check_one_sentence(
    flags: tuple[str, ...], exit_code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*flags) == exit_code
    said = capsys.readouterr().err
    assert word in said
    assert said.count("lipcast: ") <= 2
    assert "Traceback" not in said
    assert not Path("out.mp4").exists()


def test_a_truncated_checkpoint_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY, folder / "model")
    weights = folder / "model" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert generate("--ckpt-dir", "model") == 4
    assert weights.name in capsys.readouterr().err


def test_ctrl_c_keeps_the_finished_frames(folder: Path) -> None:
    write_wav(folder / "hello.wav", 120)
    arguments = ["generate", "--image", PORTRAIT, "--audio", "hello.wav", "--device", "cpu"]
    arguments += ["--size", "64*64", "--infer_frames", "12"]
    script = f"from lipcast.cli.main import run; import sys; sys.argv[1:] = {arguments!r}; run()"
    output = folder / "out.mp4"
    with started([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (output.exists() and output.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    found = re.search(r"^lipcast: stopped; kept in out.mp4: (\d+) frames", said, re.M)
    assert found is not None, said
    assert "Traceback" not in said
    # An interrupt in the midst of writing a block leaves a part of it too.
    assert 0 < int(found[1]) <= len(read_video(output).frames) < int(found[1]) + 12
