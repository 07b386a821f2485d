"""The speech loop: texts spoken, questions answered, interruptions; servers and voices are made for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from in_process import Server, Stream, pcm

from fake_openai import FakeOpenAI
from fake_speech import FakeTTS, loud
from lipcast.speech.chat import ChatModel
from lipcast.speech.recognition import Transcriber
from lipcast.speech.services import SpeechServices


class Talking:
    """A session of a server that talks."""

    def __init__(self, fake: FakeOpenAI, socket: Any, server: Server, tts: FakeTTS) -> None:
        self.fake, self.socket, self.server, self.tts = fake, socket, server, tts
        self.stream = Stream(socket)

    def send(self, **message: Any) -> None:
        self.socket.send_json(message)

    def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        wanted = {"type": kind, **fields}
        return self.stream.until(
            lambda message: all(message.get(name) == value for name, value in wanted.items())
        )

    def speak(self, seconds: float, quiet_s: float = 0.7) -> None:
        """Say something into the microphone, then be quiet."""
        self.socket.send_bytes(pcm(seconds, 16_000))
        self.socket.send_bytes(bytes(round(quiet_s * 16_000) * 2))

    def messages(self, request: int = -1) -> list[tuple[str, str]]:
        """What the language model was sent, without the system prompt."""
        found = self.fake.asked_for("chat/completions")[request].json["messages"]
        return [(each["role"], each["content"]) for each in found if each["role"] != "system"]


@pytest.fixture
def talking() -> Iterator[Talking]:
    with FakeOpenAI() as fake:
        tts = FakeTTS()
        speech = SpeechServices(
            tts=tts,
            asr=Transcriber(fake.url),
            llm=ChatModel(fake.url, model="small"),
            make_detector=lambda: loud,
        )
        with Server(speech=speech) as server, server.connect(server.open()) as socket:
            yield Talking(fake, socket, server, tts)


def test_a_text_is_spoken_and_shown(talking: Talking) -> None:
    talking.send(type="say", text="A text.")
    talking.send(type="say", text="And more.")
    state = talking.stream.until(lambda message: message.get("num_utterances", 0) > 1)
    assert state["dropped_sound_s"] == 0
    assert talking.tts.spoken == ["A text.", "And more."]
    assert talking.fake.asked == []


def test_a_question_is_answered_sentence_by_sentence(talking: Talking) -> None:
    talking.send(type="ask", text="How are you?")
    talking.until("turn", state="thinking")
    talking.until("answer", done=True)
    answers = [each["text"] for each in talking.stream.messages if each["type"] == "answer"]
    assert answers == ["Hello there. ", "How are you?", ""] and talking.tts.spoken == answers[:2]
    asked = talking.fake.asked[0].json
    assert asked["model"] == "small" and asked["stream"] is True
    assert "read out" in asked["messages"][0]["content"]
    talking.until("state", state="idle")
    talking.send(type="ask", text="And now?")
    talking.until("answer", done=True)
    assert talking.messages() == [
        ("user", "How are you?"), ("assistant", "Hello there. How are you?"), ("user", "And now?"),
    ]  # fmt: skip


def test_markup_is_shown_and_not_spoken(talking: Talking) -> None:
    talking.fake.pieces = ["## Two **bold** words.\n- `One`.\n", "***\n", "😀\n", "Bye."]
    talking.send(type="ask", text="Hm?")
    talking.until("answer", text="## Two **bold** words.\n")
    talking.until("answer", done=True)
    assert talking.tts.spoken == [" Two bold words.\n", "One.\n", "Bye."]


def test_the_first_sentence_is_spoken_while_the_answer_is_written(talking: Talking) -> None:
    talking.fake.gate = threading.Event()
    talking.fake.pieces = ["Hel", "lo there. N", "ow the rest."]
    talking.send(type="ask", text="Hm?")
    talking.until("answer", text="Hello there. ")
    talking.stream.until(lambda message: message.get("num_utterances") == 1)
    assert talking.tts.spoken == ["Hello there. "]
    talking.fake.gate.set()
    talking.until("answer", done=True)
    assert talking.tts.spoken == ["Hello there. ", "Now the rest."]


def test_a_spoken_question_is_understood_and_answered(talking: Talking) -> None:
    talking.send(type="audio", sample_rate=16_000, use="ask")
    talking.speak(1.0)
    talking.until("turn", state="hearing")
    assert talking.until("transcript")["text"] == "What is the time?"
    talking.until("answer", done=True)
    (heard,) = talking.fake.asked_for("audio/transcriptions")
    assert b'name="model"' in heard.body and b"whisper-1" in heard.body
    sound = heard.body[heard.body.index(b"RIFF") :]
    assert 1.4 * 32_000 < len(sound) < 1.8 * 32_000  # the turn, and the quiet that ended it
    assert talking.messages() == [("user", "What is the time?")]
    text = talking.server.client.get("/metrics").text
    assert "lipcast_answer_seconds_count 1.0" in text


def test_speaking_interrupts_the_answer_and_the_history_keeps_what_was_heard(
    talking: Talking,
) -> None:
    talking.fake.pieces = ["One. ", "This is a long sentence that goes on. ", "Never said."]
    talking.send(type="audio", sample_rate=16_000, use="ask")
    talking.send(type="ask", text="Go on.")
    talking.until("answer", text="This is a long sentence that goes on. ")
    begun = talking.stream.until(lambda message: message.get("num_utterances") == 1)
    heard = begun["num_frames_given"] + 60  # a second of them is still to be played
    talking.stream.until(lambda message: message.get("num_frames_given", 0) > heard)
    talking.fake.pieces = ["Fine."]
    talking.speak(0.5)
    epoch = talking.until("interrupted")["epoch"]
    assert epoch == 1
    talking.until("transcript")
    talking.until("answer", done=True)
    question, answer, then = talking.messages()
    assert question == ("user", "Go on.") and then == ("user", "What is the time?")
    assert answer[1].startswith("One.") and "goes on" not in answer[1]
    assert "Never said" not in answer[1]


def test_an_interruption_ends_the_request(talking: Talking) -> None:
    talking.fake.gate = threading.Event()
    talking.fake.pieces = ["Hello there. ", "More ", "to come."]
    talking.send(type="ask", text="Hm?")
    talking.until("turn", state="thinking")
    talking.server.wait(lambda: talking.fake.asked_for("chat/completions"))
    talking.send(type="interrupt")
    talking.until("turn", state="waiting")
    talking.server.wait(talking.fake.lost.is_set)
    talking.fake.gate = None
    talking.send(type="say", text="Still here for long.")
    talking.stream.until(lambda message: message.get("num_utterances", 0) > 0)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((429, {"retry-after": "3"}, b'{"error": {"message": "slow down"}}'), "try again in 3 s"),
        ((401, {}, b""), "set LIPCAST_LLM_KEY"),
        ((500, {}, b"out of memory"), "500: out of memory"),
        ((200, {"content-type": "text/event-stream"}, b"data: {\n\n"), "no JSON"),
        ((200, {"content-type": "text/event-stream"}, b'data: {"error": "lost"}\n\n'), "lost"),
        ((200, {"content-type": "text/event-stream"}, b'data: {"choices": []}\n\n'), "broke off"),
        ((200, {"content-type": "text/html"}, b"<html>"), "no server-sent events"),
    ],
)  # fmt: skip
def test_what_fails_is_said_and_the_session_goes_on(
    talking: Talking, failure: tuple, words: str
) -> None:
    talking.fake.failure = failure
    talking.send(type="ask", text="Hm?")
    error = talking.until("error")
    assert error["code"] == "speech" and words in error["message"]
    talking.fake.failure = None
    talking.send(type="ask", text="And now?")
    talking.until("answer", done=True)
    assert "lipcast_speech_failures_total 1.0" in talking.server.client.get("/metrics").text


def test_an_answer_that_breaks_off_keeps_what_was_said(talking: Talking) -> None:
    talking.fake.is_cut = True
    talking.send(type="ask", text="Hm?")
    assert "broke off" in talking.until("error")["message"]
    talking.until("state", state="idle")
    assert talking.tts.spoken == ["Hello there. "]
    talking.fake.is_cut = False
    talking.send(type="ask", text="Again?")
    talking.until("answer", done=True)
    assert ("assistant", "Hello there.") in talking.messages()


def test_a_server_without_streams_is_understood(talking: Talking) -> None:
    whole = {"choices": [{"message": {"content": "All at once. Yes."}}]}
    talking.fake.failure = (200, {}, json.dumps(whole).encode())
    talking.send(type="ask", text="Hm?")
    talking.until("answer", done=True)
    assert talking.tts.spoken == ["All at once. ", "Yes."]


def test_speech_is_made_as_it_is_spoken(talking: Talking) -> None:
    talking.fake.pieces = [f"This is long sentence number {n}. " for n in range(20)]
    talking.send(type="ask", text="Go on.")
    state = talking.stream.until(lambda m: m["type"] == "state" and m["num_frames_given"] > 24)
    assert len(talking.tts.spoken) < 5 and state["dropped_sound_s"] == 0
    talking.send(type="close")
    assert talking.until("closed")["reason"] == "closed"


def test_a_voice_interrupts_what_is_said(talking: Talking) -> None:
    talking.send(type="say", text="This is a long text.")
    talking.stream.until(lambda message: message.get("num_utterances", 0) > 0)
    talking.send(type="audio", sample_rate=16_000, use="watch")
    talking.speak(0.3)
    talking.until("interrupted", epoch=1)
    talking.until("state", state="idle", epoch=1)
    assert talking.fake.asked == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"type": "say"}, "expected a text with words, of 1 to 4000 characters"),
        ({"type": "say", "text": 7}, "expected a text"),
        ({"type": "say", "text": "… 😀"}, "expected a text with words"),
        ({"type": "ask", "text": "a" * 4001}, "expected a text"),
        ({"type": "audio", "sample_rate": 16_000, "use": ["x"]}, "one of: speak, ask, watch"),
    ],
)
def test_wrong_messages_are_refused(talking: Talking, message: dict, words: str) -> None:
    talking.send(**message)
    assert words in talking.until("error")["message"]


def test_a_server_without_speech_says_what_to_start_it_with(server: Server) -> None:
    assert set(server.client.get("/api/info").json()["speech"].values()) == {False}
    with server.connect(server.open()) as socket:
        stream = Stream(socket)
        for message, words in (
            ({"type": "say", "text": "Hello."}, "has no speech synthesis"),
            ({"type": "ask", "text": "Hello?"}, "has no speech synthesis"),
        ):
            socket.send_json(message)
            error = stream.until(lambda found: found["type"] == "error")
            assert words in error["message"] and error["code"] == "refused"
        for use, words in (("ask", "start it with --llm_url"), ("watch", r"lipcast[vad]")):
            socket.send_json({"type": "audio", "sample_rate": 16_000, "use": use})
            socket.send_bytes(pcm(0.1, 16_000))
            error = stream.until(lambda found: found["type"] == "error")
            assert words in error["message"]
