"""The example of Pipecat: what it says, its pipelines, and a browser that sees and hears it.

The browser test needs a Chromium of the system (`apt-get install chromium`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from browser import chromium, hears, needs_chromium, until
from fake_live import FakeModel
from loopback import CHROMIUM_FLAGS, on_loopback

pytest.importorskip("pipecat", reason="pipecat-ai is not installed")

from pipecat.frames.frames import (
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat_bot import ServedBot, load_bot

pytestmark = pytest.mark.slow  # the example imports a speech detector and a server
RATE = 24_000
LEVEL = """(() => {
    const drawn = new OffscreenCanvas(8, 8).getContext('2d');
    drawn.drawImage(document.getElementById('video'), 0, 0, 8, 8);
    return drawn.getImageData(4, 4, 1, 1).data[0];
})()"""


def tone(seconds: float) -> TTSAudioRawFrame:
    samples = 16_000 * np.sin(np.arange(round(seconds * RATE)) * 0.1)
    return TTSAudioRawFrame(samples.astype(np.int16).tobytes(), RATE, 1)


@pytest.mark.filterwarnings("ignore:.*is deprecated since:DeprecationWarning")  # Pipecat's own
@pytest.mark.parametrize("arguments", [[], ["--url", "http://127.0.0.1:1/v1"]])
def test_its_pipelines_have_the_face_before_the_transport(arguments, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    example = load_bot()

    async def make() -> list[Any]:
        bot = example.Bot(FakeModel(), example.EXAMPLE, (64, 64), example.parse(arguments))
        connection = SmallWebRTCConnection()
        pipeline = bot.pipeline(bot.transport(connection))
        await connection.disconnect()
        return pipeline.processors[1:-1]

    names = [type(each).__name__ for each in asyncio.run(make())]
    face = names.index("LipcastVideoService")
    assert names[0] == "SmallWebRTCInputTransport"
    assert names[face + 1] == "SmallWebRTCOutputTransport"
    assert ("OpenAITTSService" if arguments else "Echo") == names[face - 1]


def test_the_size_of_the_transport_is_that_of_the_pictures(tiny):
    example = load_bot()
    bot = example.make_bot(tiny, example.parse(["--size", "64*64"]))
    with tiny.live(image=bot.image, sample_rate=RATE, options=bot.options) as live:
        picture = next(iter(live)).picture
    assert picture.shape == (bot.size[1], bot.size[0], 3)


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.mark.timeout(900)
@needs_chromium[-1]
def test_a_browser_sees_and_hears_it_and_interrupts():
    with on_loopback(), ServedBot() as served, chromium(*CHROMIUM_FLAGS) as browser:
        page = browser.new_page()
        page.goto(served.url)
        page.click("#talk")
        until(page, "window.peer?.connectionState === 'connected'")
        until(page, "document.getElementById('video').currentTime > 0.5")
        assert page.evaluate(LEVEL) < 150
        served.say(TTSStartedFrame(), tone(60), TTSStoppedFrame())
        until(page, f"{LEVEL} > 200")
        assert hears(page, by_stream=True)
        served.say(InterruptionFrame())
        until(page, f"{LEVEL} < 150")
        page.evaluate("peer.close()")
        wait(lambda: not served.bot.workers)
    assert [session.closed for session in served.model.sessions] == [True]
