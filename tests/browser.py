"""A real browser for tests and measurements of pages: Chromium of the system, with a fake microphone.

Without one (`apt-get install chromium`) the tests that carry `needs_chromium` are skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
WAIT_S = 120
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)  # fmt: skip
needs_chromium = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # above what all the waits of one test may take
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
RECORDS = """
window.said = [];
window.muted = [];
addEventListener("DOMContentLoaded", () => {
    const state = document.getElementById("state"), video = document.getElementById("video");
    new MutationObserver(() => said.push(state.textContent)).observe(state, {childList: true});
    video.addEventListener("volumechange", () => muted.push(video.muted));
});
"""
"""What the page said and when it was muted: some of it lasts shorter than a busy machine takes to ask."""
SPEAKING = "said.some((text) => text.startsWith('Speaking'))"
STATE = "document.getElementById('state').textContent"
TIME = "document.getElementById('video').currentTime"
_HEARD = """async ([limit, byStream]) => {
    const context = new AudioContext(), analyser = context.createAnalyser();
    const video = document.getElementById('video'), data = new Float32Array(2048);
    const source = byStream ? context.createMediaStreamSource(video.srcObject)
        : context.createMediaElementSource(video);
    source.connect(analyser);
    for (const end = performance.now() + limit; performance.now() < end; ) {
        await new Promise((next) => setTimeout(next, 50));
        analyser.getFloatTimeDomainData(data);
        if (Math.max(...data) > 0.02) return true;
    }
    return false;
}"""


@contextmanager
def chromium(*flags: str, voice: Path | str | None = None) -> Iterator[Any]:
    """Start a browser; `voice` is what its microphone hears."""
    from playwright.sync_api import sync_playwright

    said = [f"--use-file-for-fake-audio-capture={voice}"] if voice else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags, *said])
        yield browser
        browser.close()


@contextmanager
def opened_page(browser: Any, url: str, *, height: int = 900) -> Iterator[Any]:
    """Open the page of a server once it has answered; its errors and requests to other servers fail."""
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": height})
    page.set_default_timeout(WAIT_S * 1000)
    page.add_init_script(RECORDS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    parts = urlsplit(url)
    own = f"{parts.scheme}://{parts.netloc}/", "ws://127.0.0.1", "data:", "blob:"
    page.on("request", lambda sent: None if sent.url.startswith(own) else errors.append(sent.url))
    page.goto(url)
    until(page, "!document.getElementById('example').disabled")
    yield page
    page.close()
    assert errors == [], errors


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds; polled from outside, since the page allows no `eval`."""
    end = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, (
            f"{condition} did not come about; the page says: {page.evaluate(STATE)}"
        )
        page.wait_for_timeout(100)


def hears(page: Any, *, by_stream: bool = False) -> bool:
    """Return whether the video is heard; over WebRTC its sound is a stream's."""
    heard: bool = page.evaluate(_HEARD, [WAIT_S * 500, by_stream])
    return heard
