"""Speech for training: by whatever program there is, a folder for each speaker, nothing made twice."""

import logging
import os
from pathlib import Path

import pytest

from lipcast.errors import SpeechError
from lipcast_train.data import speech
from lipcast_train.data.speech import Made, find_voices, make_speech, sentences
from lipcast_train.data.voices import FolderVoices
from sounds import write_wav

needs_a_shell = pytest.mark.skipif(os.name != "posix", reason="programs are shell scripts here")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with no speech program on it, and no package that speaks."""
    monkeypatch.setattr(speech, "_hibari", lambda: [])
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _program(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def test_every_language_has_something_to_say() -> None:
    texts = sentences()
    assert len(texts["en"]) >= 10
    assert len(texts) >= 10
    assert min(len(said) for said in texts.values()) >= 2


def test_without_a_voice_it_says_what_to_install(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match=r"no voice is installed; pip install lipcast\[tts\]"):
        make_speech(tmp_path / "speech")


@needs_a_shell
def test_programs_speak_into_a_folder_for_each_speaker(programs: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "sound.wav", 0.4, rate=22_050)
    log = tmp_path / "log"
    _program(
        programs / "espeak-ng", f'for last; do :; done; echo "$@" >> {log}; /bin/cp {sound} "$last"'
    )
    voices = [voice for voice in find_voices() if voice.name in {"espeak-id-m1", "espeak-tr-f2"}]
    made = make_speech(tmp_path / "speech", voices=voices)
    assert made == Made(num_files=4, num_speakers=2, seconds=pytest.approx(1.6, abs=0.01))
    assert "-v id+m1" in log.read_text()
    assert len(FolderVoices(tmp_path / "speech").speech(32_000, 0)) == 32_000
    calls = log.read_text()
    assert make_speech(tmp_path / "speech", voices=voices) == made
    assert log.read_text() == calls


@needs_a_shell
def test_a_voice_that_fails_is_left_out(
    programs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = write_wav(tmp_path / "sound.wav", 0.2)
    _program(
        programs / "flite",
        f'case "$2" in slt) for last; do :; done; /bin/cp {sound} "$last";; *) echo none >&2; exit 1;; esac',
    )
    with caplog.at_level(logging.WARNING):
        made = make_speech(tmp_path / "speech")
    assert made.num_speakers == 1
    assert made.num_files == len(sentences()["en"])
    assert "flite-rms: flite made no speech (none); the voice is left out" in caplog.text
