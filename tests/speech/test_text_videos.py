"""Videos of a text: the command, tables of jobs, and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lipcast
from fake_openai import RATE, FakeOpenAI, tone
from lipcast.cli.main import main
from lipcast.errors import SpeechError
from lipcast.media.decode import read_sound
from lipcast.speech.sound import Sound, wav_bytes
from sounds import EXAMPLES, write_wav


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPCAST_HOME", str(tmp_path / "home"))
    Image.new("RGB", (64, 64), "white").save(tmp_path / "me.png")
    write_wav(tmp_path / "hello.wav", 0.5)
    return tmp_path


def submit(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code = main(["job", "submit", *words, "--workspace", "work", "--json"])
    document = json.loads(capsys.readouterr().out)
    if code:
        return code, document["error"]["message"]
    requests = []
    for name in document["jobs"]:
        assert main(["job", "show", name, "--workspace", "work", "--json"]) == 0
        requests.append(json.loads(capsys.readouterr().out)["request"])
    return requests


def test_a_text_is_spoken_once_and_found_again(
    folder: Path, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--image", "me.png", "--text", "Hello.", "--tts", fake.url, "-o", "a.mp4")
    (first,) = submit(capsys, *words)
    (again,) = submit(capsys, *words)
    assert first["audio"] == again["audio"] and len(fake.asked) == 1
    samples, rate, _ = read_sound(first["audio"])
    assert rate == RATE and len(samples) == RATE // 2
    (other,) = submit(capsys, *words, "--tts_voice", "nova")
    assert other["audio"] != first["audio"] and fake.asked[1].json["voice"] == "nova"
    assert {path.suffix for path in (folder / "home" / "speech").iterdir()} == {".wav"}


def test_rows_of_a_table_may_have_a_text_or_a_sound(
    folder: Path, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    table = 'image,audio,text,output\nme.png,,"Hello, you.",a.mp4\nme.png,hello.wav,,b.mp4\n'
    (folder / "jobs.csv").write_text(table)
    spoken, heard = submit(capsys, "--batch", "jobs.csv", "--tts", fake.url)
    assert fake.asked[0].json["input"] == "Hello, you." and len(fake.asked) == 1
    assert Path(heard["audio"]) == folder / "hello.wav"
    assert Path(spoken["audio"]).parent == folder / "home" / "speech"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--text", "Hello.", "--audio", "hello.wav"), 2, "--audio and --text were both given"),
        ((), 2, "--audio is missing; give an audio file with --audio FILE, or words to speak with --text"),
        (("--text", " "), 3, "text: expected words to speak, got none"),
        (("--text", "Hello.", "--tts", "loud"), 2, "--tts: expected auto, hibari, espeak or a URL"),
    ],
)  # fmt: skip
def test_what_cannot_be_spoken_is_one_sentence(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert main(["generate", "--image", "me.png", *words]) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert list(folder.glob("*.mp4")) == []


def test_a_server_that_fails_ends_the_command(
    folder: Path, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = (503, {}, b'{"error": {"message": "warming up"}}')
    words = ("--image", "me.png", "--text", "Hello.", "--tts", fake.url)
    assert main(["generate", *words]) == SpeechError.exit_code
    assert "503: warming up" in capsys.readouterr().err
    assert not (folder / "home" / "speech").exists()


def test_a_cache_that_cannot_be_written_is_said(
    folder: Path, fake: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "home").mkdir()
    (folder / "home" / "speech").write_text("not a folder")
    words = ("--image", "me.png", "--text", "Hello.", "--tts", fake.url)
    assert main(["generate", *words]) == 6
    assert "cannot be written" in capsys.readouterr().err


def test_a_text_becomes_pictures_with_its_sound(quick: lipcast.Lipcast, fake: FakeOpenAI) -> None:
    fake.sound = wav_bytes([Sound(tone(0.4), RATE)])
    video = quick.generate(
        image=EXAMPLES / "portrait_0.png",
        audio=lipcast.speak("Hello.", tts=fake.url),
        size="64*64",
        infer_frames=12,
        sample_steps=1,
    )
    assert video.frames.shape[0] == 10 and np.abs(video.audio).max() > 0.2
