"""What servers with OpenAI's interface are asked, as by the official client, and what they answer.

The answers are those that vLLM, llama.cpp, Ollama, Kokoro-FastAPI, Speaches and others are known for.
"""

from __future__ import annotations

import asyncio
import email
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import av
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_openai import RATE, FakeOpenAI, chunk, sent_event, tone
from lipcast.errors import SpeechError
from lipcast.speech.chat import ChatModel
from lipcast.speech.recognition import Transcriber
from lipcast.speech.sound import Sound, wav_bytes
from lipcast.speech.synthesis import find_tts
from lipcast.speech.thoughts import Thoughts

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"},
]  # fmt: skip
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
ENDS = sent_event(chunk("stop")) + b"data: [DONE]\n\n"


def answered(url: str) -> str:
    async def work() -> str:
        model = ChatModel(url, model="small")
        try:
            return "".join([piece async for piece in model.answer(MESSAGES)])
        finally:
            await model.close()

    return asyncio.run(work())


def transcribed(url: str) -> str:
    async def work() -> str:
        asr = Transcriber(url)
        try:
            return await asr.transcribe(Sound(tone(0.2), RATE))
        finally:
            await asr.close()

    return asyncio.run(work())


def spoken(url: str) -> list[Sound]:
    async def work() -> list[Sound]:
        engine = find_tts(url, voice="nova", model="tts-1")
        try:
            return [sound async for sound in engine.speak("Hello.")]
        finally:
            await engine.close()

    return asyncio.run(work())


def form_of(body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """The fields of a form: name to file name and content."""
    boundary = body[2 : body.index(b"\r\n")].decode()
    head = f"content-type: multipart/form-data; boundary={boundary}\r\n\r\n".encode()
    found = {}
    for part in email.message_from_bytes(head + body).walk():
        if not part.is_multipart():
            name = part.get_param("name", header="content-disposition")
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            found[str(name)] = (part.get_filename(), content)
    return found


def test_requests_and_answers_are_those_of_the_official_client() -> None:
    """The same bodies; and what the tests answer with is what that client validates."""
    wav = wav_bytes([Sound(tone(0.2), RATE)])
    with FakeOpenAI() as fake:
        ours = answered(fake.url), transcribed(fake.url), spoken(fake.url)
        with openai.OpenAI(
            base_url=fake.url, api_key="key", max_retries=0, _strict_response_validation=True
        ) as client:
            stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
            theirs = "".join(part.choices[0].delta.content or "" for part in stream)
            heard = client.audio.transcriptions.create(
                model="whisper-1", response_format="json", file=("speech.wav", wav, "audio/wav")
            )
            speech = client.audio.speech.create(
                model="tts-1", voice="nova", input="Hello.", response_format="wav"
            )
    assert ours[:2] == (theirs, heard.text) == ("Hello there. How are you?", fake.transcript)
    assert speech.content == fake.sound
    for path in ("chat/completions", "audio/speech"):
        one, other = fake.asked_for(path)
        assert (one.path, one.json) == (other.path, other.json)
    form, same = (form_of(asked.body) for asked in fake.asked_for("audio/transcriptions"))
    assert form == same and set(form) == {"file", "model", "response_format"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(
            b": keep-alive\n\n: OPENROUTER PROCESSING\n\nretry: 5\n\nevent: ping\n\ndata:\n\n"
            + sent_event(chunk(role="assistant", content=""))
            + sent_event(chunk(content="Hi."))
            + ENDS,
            "Hi.",
            id="signs of life",
        ),
        pytest.param(
            sent_event(chunk(content="Hi."))
            + sent_event(chunk("stop"))
            + sent_event(chunk() | {"choices": [], "usage": {"total_tokens": 3}})
            + b"data: [DONE]\n\n",
            "Hi.",
            id="usage after the end",
        ),
        pytest.param(
            sent_event(chunk() | {"choices": [], "prompt_filter_results": []})
            + sent_event(chunk(content=None, reasoning_content="Hm."))
            + sent_event(chunk(content="Hi."))
            + ENDS,
            "Hi.",
            id="filters and reasoning in fields of their own",
        ),
        pytest.param(
            (sent_event(chunk(content="Hi.")) + ENDS).replace(b"\n", b"\r\n"),
            "Hi.",
            id="other line ends",
        ),
        pytest.param(
            (sent_event(chunk(content="Hi.")) + ENDS).replace(b"data: ", b"data:"),
            "Hi.",
            id="no space",
        ),
        pytest.param(
            sent_event(chunk(content="Hi.")) + sent_event(chunk("length")),
            "Hi.",
            id="no [DONE]",
        ),
        pytest.param(
            sent_event(chunk(content="Hi.")) + b"data: [DONE] \n\n",
            "Hi.",
            id="no finish reason",
        ),
        pytest.param(
            sent_event(chunk(content="<th"))
            + sent_event(chunk(content="ink>Who is it?</think>\n\nHi."))
            + ENDS,
            "\n\nHi.",
            id="thoughts in the text",
        ),
        pytest.param(
            sent_event(
                chunk(
                    content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi."}]
                )
            )
            + ENDS,
            "Hi.",
            id="a list of parts",
        ),
    ],
)
def test_streams_that_servers_send(body: bytes, said: str) -> None:
    with FakeOpenAI(failure=(200, EVENTS, body)) as fake:
        assert answered(fake.url) == said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, EVENTS, sent_event({"error": {"message": "quota\nexceeded"}})), "quota exceeded"),
        ((200, EVENTS, sent_event({"object": "error", "message": "too long"})), r"\(too long\)"),
        ((200, EVENTS, sent_event(chunk(content="Hi."))), "broke off before its end"),
        ((200, EVENTS, b"data: [DONE]\n\n"), "no words"),
        ((200, EVENTS, sent_event(chunk(content="<think>Hm.")) + ENDS), "a model that reasons"),
        ((200, {"content-type": "text/html"}, b"<html>"), "no server-sent events"),
        ((503, JSON, b'{"error": {"code": 503, "message": "Loading model"}}'),
         "failed .503: Loading model.; see its log, or try again later"),
        ((503, JSON | {"retry-after": "3"}, b"{}"), "try again in 3 s"),
        ((502, {}, b"<html><style>a{}</style><h1>502 Bad\nGateway</h1></html>"), "502: 502 Bad Gateway"),
        ((404, JSON, b'{"object": "error", "message": "no model x", "code": 404}'), "404: no model x"),
        ((404, JSON, b'{"error": "model \'x\' not found"}'), "404: model 'x' not found"),
        ((422, JSON, b'{"detail": [{"loc": ["body"], "msg": "Field required"}]}'), "422: Field required"),
        ((400, JSON, b'{"detail": {"error": "invalid", "message": "no voice"}}'), "400: invalid"),
        ((429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"full"), "429: full.*later"),
    ],
)  # fmt: skip
def test_errors_that_servers_send_are_a_sentence(answer: Any, words: str) -> None:
    with FakeOpenAI(failure=answer) as fake, pytest.raises(SpeechError, match=words):
        answered(fake.url)


def encoded(codec: str, container: str) -> bytes:
    """A tone as a server encodes it."""
    content = io.BytesIO()
    with av.open(content, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(0.5).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return content.getvalue()


@pytest.mark.parametrize(
    ("codec", "container", "kind"),
    [("libmp3lame", "mp3", "mpeg"), ("libopus", "ogg", "ogg"), ("flac", "flac", "flac"),
     ("pcm_f32le", "wav", "wav")],
)  # fmt: skip
def test_sound_in_another_format_than_was_asked_for(codec: str, container: str, kind: str) -> None:
    content = encoded(codec, container)
    with FakeOpenAI(failure=(200, {"content-type": f"audio/{kind}"}, content)) as fake:
        sounds = spoken(fake.url)
    assert sum(sound.seconds for sound in sounds) == pytest.approx(0.5, abs=0.1)
    assert max(np.abs(sound.samples).max() for sound in sounds) > 6000


@pytest.mark.parametrize(
    ("kind", "rate"), [("audio/pcm", 24_000), ("audio/pcm;rate=16000", 16_000)]
)
def test_sound_without_a_header(kind: str, rate: int) -> None:
    content = tone(0.5).tobytes()
    with FakeOpenAI(failure=(200, {"content-type": kind}, content)) as fake:
        sounds = spoken(fake.url)
    assert {sound.sample_rate for sound in sounds} == {rate}
    assert np.array_equal(np.concatenate([sound.samples for sound in sounds]), tone(0.5))


def placeholder(content: bytes, length: int) -> bytes:
    """A WAV file whose header does not know the length."""
    return content[:40] + length.to_bytes(4, "little") + content[44:]


@pytest.mark.parametrize(
    "parts",
    [
        [wav_bytes([Sound(tone(0.25), RATE)])] * 2,  # a whole file for every sentence
        [wav_bytes([Sound(tone(0.25), RATE)]) + b"LIST\4\0\0\0abcd"] * 2,
        [placeholder(wav_bytes([Sound(tone(0.5), RATE)]), 0)],
        [placeholder(wav_bytes([Sound(tone(0.5), RATE)]), 0xFFFFFFFF)],
    ],
)
def test_wav_that_is_sent_while_it_is_made(parts: Sequence[bytes]) -> None:
    with FakeOpenAI(sound=b"".join(parts)) as fake:
        sounds = spoken(fake.url)
    assert sum(len(sound.samples) for sound in sounds) == RATE // 2


def test_an_error_in_place_of_sound_is_told() -> None:
    failure = (200, JSON, b'{"error": {"message": "unknown voice nova"}}')
    with FakeOpenAI(failure=failure) as fake, pytest.raises(SpeechError, match="unknown voice"):
        spoken(fake.url)


@pytest.mark.parametrize(
    ("transcript", "words"),
    [
        (" Hello there.\n", "Hello there."), (" [BLANK_AUDIO]\n", ""), ("(silence)", ""),
        ("[ Music ] (applause)", ""), ("No [BLANK_AUDIO]", "No [BLANK_AUDIO]"), ("", ""),
    ],
)  # fmt: skip
def test_notes_of_the_recogniser_are_no_words(transcript: str, words: str) -> None:
    with FakeOpenAI(transcript=transcript) as fake:
        assert transcribed(fake.url) == words


@given(st.text("<>/thinka ", max_size=40), st.lists(st.integers(0, 60), max_size=9))
def test_thoughts_do_not_depend_on_the_cuts(text: str, cuts: list[int]) -> None:
    text = f"One. <think>{text}</think> Two. <thi"
    whole, pieces = Thoughts(), Thoughts()
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    said = "".join(pieces.push(text[begin:end]) for begin, end in pairwise(bounds))
    assert said + pieces.finish() == whole.push(text) + whole.finish()
    assert said.startswith("One. ")
