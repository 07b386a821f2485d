"""The tab Text and the conversation in a real browser, with servers and voices made for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from running import Running

from browser import chromium, needs_chromium, opened_page, until
from fake_openai import FakeOpenAI
from fake_speech import FakeTTS, loud
from lipcast.speech.chat import ChatModel
from lipcast.speech.recognition import Transcriber
from lipcast.speech.services import SpeechServices
from sounds import write_wav

pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium
HAS_TURNS = "document.getElementById('turns').textContent.includes('{}')"


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as running:
        yield running


@pytest.fixture
def running(fake: FakeOpenAI) -> Iterator[Running]:
    speech = SpeechServices(
        tts=FakeTTS(),
        asr=Transcriber(fake.url),
        llm=ChatModel(fake.url, model="small"),
        make_detector=lambda: loud,
    )
    with Running(grace_s=5, speech=speech) as server:
        yield server


@pytest.fixture
def page(running: Running, tmp_path: Any) -> Iterator[Any]:
    voice = write_wav(tmp_path / "voice.wav", 4)
    with (
        chromium(voice=f"{voice}%noloop") as browser,
        opened_page(browser, running.server.url, height=1000) as opened,
    ):
        yield opened


def test_a_text_is_typed_spoken_and_answered(page, running, fake):
    page.click("#tab-text")
    assert page.locator("#no-speech").is_hidden() and page.locator("#say").is_disabled()
    page.fill("#text", "A long text.")
    page.click("#say")
    until(page, "document.getElementById('state').textContent.startsWith('Speaking')")
    assert running.hub.speech.tts.spoken == ["A long text."] and fake.asked == []
    page.fill("#text", "How are you <b>today</b>?")
    page.keyboard.press("Control+Enter")
    until(page, HAS_TURNS.format("Portrait: Hello there. How are you?"))
    assert "You: How are you <b>today</b>?" in page.locator("#turns").text_content()
    assert page.locator("#turns").get_attribute("aria-live") == "polite"
    fake.failure = (429, {"retry-after": "9"}, b'{"error": {"message": "slow down"}}')
    page.fill("#text", "And now?")
    page.click("#ask")
    until(page, "document.getElementById('problem').textContent.includes('try again in 9 s')")
    fake.failure = None
    page.fill("#text", "Again?")
    page.click("#ask")
    until(page, "document.getElementById('problem').textContent === ''")


def test_the_microphone_asks_and_interrupts(page, running, fake):
    page.click("#tab-text")
    page.fill("#text", "A long text.")
    page.click("#say")
    until(page, "document.getElementById('state').textContent.startsWith('Speaking')")
    page.click("#tab-microphone")
    assert page.locator("#asks").is_checked()
    page.click("#microphone")
    until(page, HAS_TURNS.format("You: What is the time?"))
    until(page, HAS_TURNS.format("Portrait: Hello there."))
    assert sum(hosted.live.stats().num_interrupts for hosted in running.hub.sessions()) >= 1
