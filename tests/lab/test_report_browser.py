"""The report in a real browser: no error, everything visible, players that scrub together.

Needs a Chromium of the system (`apt-get install chromium`); skipped where there is none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from browser import CHROMIUM, chromium
from drawn import SIDE, drawn_clip, syllable_opening
from lipcast.lab.report import read, render
from lipcast.media.video import VideoWriter

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
FRAMES = 50


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    videos = []
    for seed in (0, 1):
        videos.append(folder / f"video_{seed}.mp4")
        with VideoWriter(
            videos[-1], width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1
        ) as writer:
            clip = np.stack(drawn_clip(syllable_opening(FRAMES, seed)))
            writer.write(clip, np.zeros((FRAMES * 640, 1), np.float32))
    page = folder / "report.html"
    page.write_text(render(read(videos), title="Two videos"), "utf-8")
    return page


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_chromium(page_file, width):
    errors, requests = [], []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url[:40]))
        page.goto(page_file.as_uri())
        page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.duration > 1)")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        page.locator("input[type=range]").evaluate(
            "slider => { slider.value = 0.5; slider.dispatchEvent(new Event('input')); }"
        )
        times = page.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime)")
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    assert overflow <= 0
    assert times[0] == times[1] == pytest.approx(FRAMES / 25 / 2, abs=0.05)
