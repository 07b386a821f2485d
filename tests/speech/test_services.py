"""Which services the flags of `lipcast serve` name."""

from __future__ import annotations

import pytest

from lipcast.cli.main import main
from lipcast.errors import SpeechError, UsageError
from lipcast.speech.services import find_services

URL = "http://127.0.0.1:1/v1"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any of the extras and programs."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")


def test_nothing_is_needed(bare: None) -> None:
    assert set(find_services().described().values()) == {False}
    with pytest.raises(SpeechError, match="no speech synthesis was found"):
        find_services(tts_voice="heart")
    with pytest.raises(SpeechError, match="not installed"):
        find_services(tts="hibari")


def test_servers_need_no_extras(bare: None) -> None:
    found = find_services(tts=URL, asr_url=URL, llm_url=URL, llm_model="small").described()
    assert found == {"tts": True, "asr": True, "llm": True, "vad": False}
    assert find_services(tts="off").tts is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tts": URL, "llm_url": URL}, "give the model's name"),
        ({"tts": URL, "asr_url": URL}, "with --llm_url"),
        ({"tts": "off", "llm_url": URL, "llm_model": "small"}, "answers are spoken"),
        ({"tts": URL, "llm_url": "localhost", "llm_model": "small"}, "--llm_url: expected http://host/v1"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_services(**flags)


def test_the_command_refuses_them_before_it_opens_a_port(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--tts", URL, "--asr_url", URL, "--port", "0")
    assert main(["serve", *words]) == 2
    assert "with --llm_url" in capsys.readouterr().err
