"""The command as its users meet it: results, sentences, exit codes, one JSON document."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_model import FRAMES, NUM_BLOCKS, FakeModel
from PIL import Image

from lipcast.cli.main import main
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.errors import InputError, OutputError
from lipcast.media.video import VideoWriter, read_video
from lipcast.weights.prompts import PromptEmbedding, write_embedding
from sounds import write_wav


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "me.png")
    write_wav(tmp_path / "hello.wav", 0.5)
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, model: FakeModel) -> FakeModel:
    monkeypatch.setattr("lipcast.api.load", model.load)
    return model


def generate(*more: str) -> int:
    return main(["generate", "--image", "me.png", "--audio", "hello.wav", *more])


def document(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """Standard output as its one JSON document, and standard error."""
    said = capsys.readouterr()
    content: dict[str, Any] = json.loads(said.out)
    return content, said.err


def test_a_video_is_made_and_reported(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = install(monkeypatch, FakeModel())
    flags = ["--prompt", "calm", "--single-gpu", "--seed", "7", "--infer-frames=24", "-o", "a.mp4"]
    assert generate(*flags, "--json") == 0
    told, said = document(capsys)
    assert told["status"] == "finished"
    assert told["frames"] == NUM_BLOCKS * FRAMES
    assert told["seed"] == 7
    assert told["output"] == str(files / "a.mp4")
    assert set(told["seconds_by_part"]) == {"speech_s", "dit_s", "vae_s", "mux_s"}
    assert told["request"]["options"]["infer_frames"] == told["infer_frames"] == 24
    assert list(told["accepted"]) == ["single_gpu"]
    assert 0 < told["time_to_first_frame_s"] <= told["elapsed_s"]
    assert told["peak_rss_bytes"] > 2**20
    assert "a.mp4: 48 frames, 1.92 s" in said
    asked_load = {"name": "tiny", "device": None, "precision": None, "loras": (), "decoder": None}
    expected = GenerateOptions(seed=7, infer_frames=24)
    machine = {"memory_options": MemoryOptions(), "gpu_options": GpuOptions()}
    assert model.asked.load == asked_load | machine | {"expected": expected}
    asked = model.asked.stream
    assert asked["image"].size == (64, 64)
    assert (asked["audio"].duration_s, asked["prompt"]) == (0.5, "calm")
    assert model.session is not None and model.session.closed
    assert model.session.spec.options == GenerateOptions(seed=7, infer_frames=24)
    assert len(read_video("a.mp4").frames) == 48


@pytest.mark.parametrize(
    ("error", "exit_code", "status", "sentence"),
    [
        (KeyboardInterrupt(), 130, "stopped", "stopped; kept in out.mp4: 24 frames, 0.96 s"),
        (
            OutputError("the disk is full"),
            6,
            "failed",
            "the disk is full; kept in out.mp4: 24 frames",
        ),
        (ValueError("odd"), 70, "failed", "--debug; kept in out.mp4: 24 frames"),
    ],
)
def test_what_ends_early_keeps_its_frames(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    exit_code: int,
    status: str,
    sentence: str,
) -> None:
    install(monkeypatch, FakeModel(error, fail_at=2))
    assert generate("--json") == exit_code
    told, said = document(capsys)
    assert (told["status"], told["frames"]) == (status, 24)
    assert sentence in said
    assert "Traceback" not in said
    assert len(read_video("out.mp4").frames) == 24


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (InputError("expected a picture, got a poem"), 3, "expected a picture, got a poem"),
        (MemoryError(), 5, "out of memory. Lower --size or --infer_frames"),
        (KeyError("x"), 70, "unexpected KeyError: 'x'. This is a defect; run again with --debug."),
    ],
)
def test_what_fails_before_the_first_frame_leaves_the_output_alone(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    exit_code: int,
    sentence: str,
) -> None:
    (files / "out.mp4").write_bytes(b"precious")
    install(monkeypatch, FakeModel(error, fail_at=0))
    assert generate("--json") == exit_code
    told, said = document(capsys)
    assert told["status"] == ("stopped" if exit_code == 130 else "failed")
    assert told["error"]["exit_code"] == exit_code
    assert said.splitlines()[-1] == f"lipcast: {told['error']['message']}"
    assert sentence in said
    assert (files / "out.mp4").read_bytes() == b"precious"


def test_an_interrupt_within_the_first_block_keeps_what_is_in_the_file(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, calls = VideoWriter._encode_frame, [0]

    def interrupted(self: VideoWriter, frame: Any) -> None:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        encode(self, frame)

    monkeypatch.setattr(VideoWriter, "_encode_frame", interrupted)
    install(monkeypatch, FakeModel())
    assert generate("--json") == 130
    told, said = document(capsys)
    assert (told["status"], told["frames"]) == ("stopped", 5)
    assert "stopped; kept in out.mp4: 5 frames, 0.20 s" in said
    assert len(read_video("out.mp4").frames) == 5


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Every file of this process may grow to `num_bytes`: a disk that is soon full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_fits(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, FakeModel(noise=True))
    with largest_file(60_000):
        assert generate("--json") == 6
    told, said = document(capsys)
    assert told["status"] == "failed"
    kept = len(read_video("out.mp4").frames)
    assert 0 < kept < NUM_BLOCKS * FRAMES
    assert f"kept in out.mp4: {kept} frames, {kept / 25:.2f} s" in said
    assert (told["frames"], told["duration_s"]) == (kept, kept / 25)


def test_debug_shows_the_traceback(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, FakeModel(KeyError("x")))
    assert generate("--debug") == 70
    assert "Traceback" in capsys.readouterr().err


def test_adapters_and_precision_reach_the_model(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = install(monkeypatch, FakeModel())
    flags = ["--load_lora", "--lora_path_dmd", "a b.safetensors", "--lora", "c:0.5", "--fp8"]
    assert generate("-q", *flags) == 0
    assert model.asked.load["loras"] == ("a b.safetensors", "c:0.5")
    assert model.asked.load["precision"] == "fp8"


def test_a_prompt_comes_as_text_or_as_a_file(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = install(monkeypatch, FakeModel())
    path = files / "prompt.safetensors"
    assert generate("--prompt_embedding", "prompt.safetensors") == 3
    assert "--prompt_embedding: prompt.safetensors does not exist" in capsys.readouterr().err
    path.write_text("a calm man, in words and not in numbers")
    assert generate("--prompt_embedding", "prompt.safetensors") == 4
    assert "prompt.safetensors: expected a safetensors file" in capsys.readouterr().err
    assert generate("--prompt_embedding", "prompt.safetensors", "--prompt", "calm") == 2
    write_embedding(path, PromptEmbedding(torch.zeros(3, 8), "calm", ""))
    assert generate("--prompt_embedding", "prompt.safetensors") == 0
    assert model.asked.stream["prompt"] == Path("prompt.safetensors")


def test_quiet_says_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, FakeModel())
    assert generate("-q") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "--imge", "x"], "No such option '--imge'. (Did you mean one of: '--image'"),
        (["generate", "--size"], "'--size' requires an argument"),
        (["generate", "stray"], "stray"),
        (["conjure"], "No such command 'conjure'"),
        (["generat"], "No such command 'generat'. Did you mean 'generate'?"),
        (["job", "lst"], "See `lipcast job --help`"),
        (["generate", "--frame-num", "9"], "--frame_num: the audio decides the length"),
        (["generate", "--pose-end", "loop"], "--pose_end: says what follows a pose video"),
        (["generate", "--fp8", "--precision", "int4"], "--fp8: asks for precision fp8, and"),
        (["info", "--infer_frames", "30"], "infer_frames: expected a multiple of 4"),
        (["info", "--model", "nowhere"], "which is none of them"),
    ],
)
def test_wrong_commands_get_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(arguments) in {2, 4}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lipcast: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGHUP", "SIGINT"))],
)
def test_signals_that_end_a_process_are_like_ctrl_c(files: Path, name: str) -> None:
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); NAME = sys.argv[2]\n"
        "import lipcast.api; from fake_model import FakeModel; from lipcast.cli import main\n"
        "class Signalled(FakeModel):\n"
        "    def stream(self, **asked):\n"
        "        os.kill(os.getpid(), getattr(signal, NAME))\n"
        "        return super().stream(**asked)\n"
        "lipcast.api.load = Signalled().load\n"
        "sys.argv[1:] = ['generate', '--image', 'me.png', '--audio', 'hello.wav', '--json']\n"
        "main.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "CancelledError"
    assert "stopped; nothing was written" in done.stderr and "Traceback" not in done.stderr


def test_a_closed_terminal_is_ignored_where_its_parent_ignores_it() -> None:
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from lipcast.cli.signals import interrupt_on_termination\n"
        "interrupt_on_termination(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"


def test_signals_that_come_together_are_one_request() -> None:
    """A session manager sends SIGHUP behind SIGTERM: what is being tidied up is not interrupted again."""
    script = (
        "import os, signal\nfrom lipcast.cli.signals import interrupt_on_termination\n"
        "interrupt_on_termination()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: print('tidying')\n"
        "os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM); print('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "tidying\ndone\n"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("job", "run"), "finished segments are kept, and `lipcast job run` continues"),
        (("pull", "live-avatar-14b"), "the same command continues"),
        (("info",), ""),
    ],
)
def test_what_is_left_after_ctrl_c_is_said(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], left: str,
) -> None:  # fmt: skip
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lipcast.jobs.runner.run_jobs", interrupted)
    monkeypatch.setattr("lipcast.weights.hub.pull", interrupted)
    monkeypatch.setattr("lipcast.cli.info.read_configs", interrupted)
    monkeypatch.setenv("LIPCAST_HOME", str(files))
    assert main(words) == 130
    assert capsys.readouterr().err == f"lipcast: stopped{'; ' if left else ''}" + (
        f"what has arrived is kept, and {left}\n" if "pull" in words else f"{left}\n"
    )
