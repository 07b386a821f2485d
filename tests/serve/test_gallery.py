"""The gallery of videos on the page, in a real browser, with videos that cost nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from in_process import Drawing
from running import Running

from browser import chromium, needs_chromium, opened_page, until
from lipcast.errors import OutputError
from lipcast.jobs.tasks import SegmentTask
from sounds import EXAMPLES, write_wav

pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium
GO = threading.Event()
ITEMS = "[...document.querySelectorAll('#videos li')]"
FIRST = "document.querySelector('#videos li')"


class Held(Drawing):
    """Makes the second segment when it is told to; a prompt of a test fails."""

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        if request["prompt"] == "fails":
            raise OutputError("the disk is full; make room")
        assert task.number == 0 or GO.wait(600)
        return super().render(request, task)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page of a server without videos; it may not make an error, nor ask another server."""
    GO.clear()
    with (
        Running(make_renderer=Held, workspace=tmp_path / "videos", segment_s=0.96) as running,
        chromium() as browser,
        opened_page(browser, running.server.url) as opened,
    ):
        yield opened
        GO.set()


def make(page: Any, prompt: str) -> None:
    count = page.evaluate(f"{ITEMS}.length")
    page.fill("#prompt", prompt)
    page.click("#make-video")
    until(page, f"{ITEMS}.length === {count + 1}")


def test_videos_are_made_shown_and_deleted(page: Any, tmp_path: Path) -> None:
    assert page.locator("#no-videos").is_visible() and page.locator("#make-video").is_disabled()
    page.click("#tab-file")
    page.set_input_files("#sound-file", write_wav(tmp_path / "hello.wav", 1.92))
    page.set_input_files("#portrait-file", EXAMPLES / "portrait_3.png")
    until(page, "document.getElementById('state').textContent.includes('is ready:')")
    make(page, "calm")
    assert page.locator("#no-videos").is_hidden()
    until(page, f"{FIRST}.querySelector('progress').value === 50")
    assert "Being made, 50 %" in page.evaluate(f"{FIRST}.textContent")
    assert page.locator("#videos li button:visible").count() == 1  # Delete; nothing to play yet
    GO.set()
    until(page, f"{FIRST}.textContent.includes('Finished')")
    until(page, f"{FIRST}.querySelector('img').naturalWidth > 0")
    page.click("#videos li .row button:first-child")
    until(page, f"{FIRST}.querySelector('video').currentTime > 0")
    with page.expect_download() as download:
        page.click("#videos li a")
    download.value.save_as(tmp_path / "got.mp4")
    (name,) = (path.name for path in (tmp_path / "videos").glob("video_*"))
    made = (tmp_path / "videos" / name / "video.mp4").read_bytes()
    assert (tmp_path / "got.mp4").read_bytes() == made
    sent = (tmp_path / "videos" / name / "portrait").read_bytes()
    assert sent == (EXAMPLES / "portrait_3.png").read_bytes()

    make(page, "fails")
    until(page, f"{FIRST}.textContent.includes('the disk is full; make room')")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.focus("#videos li .delete")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Really delete"
    page.keyboard.press("Enter")
    until(page, f"{ITEMS}.length === 1")
    assert page.evaluate("document.activeElement.ariaLabel") == "Delete: calm"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    until(page, f"{ITEMS}.length === 0")
    assert page.locator("#no-videos").is_visible()
    assert page.evaluate("document.activeElement.id") == "gallery-title"
    assert not list((tmp_path / "videos").glob("video_*"))


def test_a_server_that_is_gone_is_named(page: Any) -> None:
    page.route("**/v1/videos*", lambda route: route.abort())
    page.evaluate("gallery.look()")
    until(
        page, "document.getElementById('gallery-problem').textContent.includes('does not answer')"
    )
    page.unroute("**/v1/videos*")
    page.evaluate("gallery.look()")
    until(page, "document.getElementById('gallery-problem').textContent === ''")
