"""Text to speech by each engine, and what is said where one is missing or fails."""

from __future__ import annotations

import asyncio
import io
import shutil
import socket
import threading
import wave
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lipcast
from fake_openai import RATE, FakeOpenAI, tone
from lipcast.errors import InputError, SpeechError, UsageError
from lipcast.speech.service import Service
from lipcast.speech.sound import Sound, SoundReader, wav_bytes
from lipcast.speech.synthesis import SpeechServer, TextToSpeech, find_tts


def spoken(engine: TextToSpeech, text: str = "Hello there. How are you?") -> list[Sound]:
    async def work() -> list[Sound]:
        try:
            return [sound async for sound in engine.speak(text)]
        finally:
            await engine.close()

    return asyncio.run(work())


def joined(sounds: list[Sound]) -> np.ndarray:
    return np.concatenate([sound.samples for sound in sounds])


def test_a_server_is_asked_as_openai_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPCAST_TTS_KEY", " secret\n")
    with FakeOpenAI() as fake:
        sounds = spoken(find_tts(fake.url, voice="nova", model="big"))
    (asked,) = fake.asked
    assert (asked.path, asked.key) == ("/v1/audio/speech", "Bearer secret")
    assert asked.json == {
        "model": "big", "voice": "nova", "input": "Hello there. How are you?", "response_format": "wav",
    }  # fmt: skip
    assert {sound.sample_rate for sound in sounds} == {RATE}
    assert np.array_equal(joined(sounds), tone(0.5))


@pytest.mark.parametrize(
    ("given_url", "path"),
    [("", "/v1/audio/speech"), ("/", "/v1/audio/speech"), ("/api", "/api/audio/speech"),
     ("/v1/", "/v1/audio/speech"), ("/v1/audio/speech", "/v1/audio/speech"),
     ("/v1?version=2", "/v1/audio/speech?version=2")],
)  # fmt: skip
def test_the_url_may_be_that_of_the_server_or_of_the_endpoint(given_url: str, path: str) -> None:
    with FakeOpenAI() as fake:
        spoken(find_tts(fake.url.removesuffix("/v1") + given_url))
    assert fake.asked[0].path == path


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((401, {}, b""), "the key was refused .401.; set LIPCAST_TTS_KEY"),
        ((429, {"retry-after": "7"}, b'{"error": {"message": "slow down"}}'), "slow down.*in 7 s"),
        ((429, {}, b"[]"), "try again later"),
        ((500, {}, b'{"error": "no\\n memory"}'), "500: no memory"),
        ((404, {}, b"\xff" * 99_999), "404"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "302: it points to http://127.0.0.1:1/"),
        ((200, {}, b""), "no sound"),
        ((200, {}, b"ID3 this is no sound at all"), "cannot be used"),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_a_sentence(failure: tuple, words: str) -> None:
    with FakeOpenAI(failure=failure) as fake, pytest.raises(SpeechError, match=words):
        spoken(find_tts(fake.url))


def test_an_answer_that_breaks_off_or_does_not_come() -> None:
    with FakeOpenAI(is_cut=True) as fake, pytest.raises(SpeechError, match="broke off"):
        spoken(find_tts(fake.url))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SpeechError, match="cannot be reached"):
            spoken(find_tts(url))
    with FakeOpenAI(gate=threading.Event()) as fake:
        engine = SpeechServer(
            Service("--tts", fake.url, key="LIPCAST_TTS_KEY", read_s=0.2), voice=None, model=""
        )
        with pytest.raises(SpeechError, match=r"nothing came for 0\.2 s"):
            spoken(engine)


@pytest.mark.parametrize(
    "url",
    ["http://", "https://:80", "http://a:99999", "http://[", "http://a b", "ftp://a", "hibary", ""],
)
def test_an_engine_that_does_not_exist_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--tts: expected"):
        find_tts(url)


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpeechError, match="no speech synthesis was found; pip install"):
        find_tts()
    with pytest.raises(SpeechError, match=r"lipcast\[tts\]"):
        find_tts("hibari")
    with pytest.raises(SpeechError, match="apt install espeak-ng"):
        find_tts("espeak")


def test_hibari_gives_the_same_sound_each_time() -> None:
    pytest.importorskip("hibari")
    engine = find_tts("hibari")
    first = spoken(engine)
    assert len(first) == 2 and first[0].sample_rate == 24_000
    assert 0.5 < first[0].seconds < 4 and np.abs(first[0].samples).max() > 1000
    assert np.array_equal(joined(first), joined(spoken(engine)))
    with pytest.raises(SpeechError, match="English only"):
        spoken(engine, "日本語")
    with pytest.raises(UsageError, match="hibari has heart"):
        find_tts("hibari", voice="nobody")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng on the PATH")
def test_espeak_speaks_many_languages() -> None:
    sounds = spoken(find_tts("espeak", voice="de"), "Guten Tag. Wie geht es?")
    assert len(sounds) == 2 and np.abs(joined(sounds)).max() > 1000
    with pytest.raises(SpeechError, match="lists the voices"):
        spoken(find_tts("espeak", voice="nobody"))


@given(st.lists(st.integers(0, 5000), max_size=30), st.sampled_from([1, 2]), st.booleans())
def test_a_wav_file_is_read_while_it_comes(
    cuts: list[int], channels: int, is_placeholder: bool
) -> None:
    samples = np.arange(-1000, 1000, dtype=np.int16)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(np.repeat(samples, channels).astype("<i2").tobytes())
    data = bytearray(content.getvalue())
    if is_placeholder:  # as programs write that do not know the length yet
        data[40:44] = (0x7FFFF000).to_bytes(4, "little")
    reader, found = SoundReader(), []
    bounds = [0, *sorted(cuts), len(data)]
    for begin, end in pairwise(bounds):
        found += reader.push(bytes(data[begin:end]))
    assert reader.finish() == []
    assert np.array_equal(joined(found), samples)


def test_a_text_becomes_a_sound_for_a_video() -> None:
    with FakeOpenAI() as fake:
        sound = lipcast.speak("Hello.", tts=fake.url)
        assert sound.duration_s == pytest.approx(0.5)

        async def in_a_notebook() -> float:
            return lipcast.speak("Hello.", tts=fake.url).duration_s

        assert asyncio.run(in_a_notebook()) == pytest.approx(0.5)
        with pytest.raises(InputError, match="words to speak"):
            lipcast.speak(" \n", tts=fake.url)
        with pytest.raises(InputError, match="at most 50000 characters"):
            lipcast.speak("a" * 50_001, tts=fake.url)
    assert wav_bytes([Sound(tone(0.1), RATE)])[:4] == b"RIFF"
