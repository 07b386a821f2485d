"""The page in headless Chromium, with a fake microphone, on a server with the embedded model.

    .venv/bin/python scripts/soak/page_tiny.py --size 128*128 --screenshot out/page.png

A server is started in this process. The microphone hears an example voice. Printed: seconds from the press to
the first picture, whether sound is heard and the picture moves, pictures a second against playback, seconds
until an interruption is answered, and what the page says. Needs a Chromium of the system. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]
from live import make_hub, serving

from browser import STATE, TIME, chromium, hears, opened_page, until

ROOT = Path(__file__).parents[2]
VOICE = ROOT / "examples" / "speech_b_male.wav"
MOVED = """async (seconds) => {
    const video = document.getElementById('video'), canvas = new OffscreenCanvas(32, 32);
    const drawn = canvas.getContext('2d', { willReadFrequently: true });
    let before = null, most = 0, shown = 0;
    const look = () => { shown += 1; video.requestVideoFrameCallback(look); };
    video.requestVideoFrameCallback(look);
    for (const end = performance.now() + 1000 * seconds; performance.now() < end; ) {
        await new Promise((next) => setTimeout(next, 100));
        drawn.drawImage(video, 0, 0, 32, 32);
        const now = drawn.getImageData(0, 0, 32, 32).data;
        const change = before ? now.reduce((sum, x, i) => sum + Math.abs(x - before[i]), 0) : 0;
        most = Math.max(most, change / now.length);
        before = now;
    }
    return [most, shown / seconds];
}"""


def measure(page: Any, screenshot: Path | None) -> dict[str, Any]:
    """Press the microphone, watch, and interrupt."""
    page.wait_for_timeout(2000)  # the session that is opened ahead
    page.click("#tab-microphone")
    began = time.monotonic()
    page.click("#microphone")
    until(page, f"{TIME} > 0")
    found: dict[str, Any] = {"first_picture_s": round(time.monotonic() - began, 2)}
    until(page, "said.some((text) => text.startsWith('Speaking'))")
    found["is_heard"] = hears(page)
    moved, rate = page.evaluate(MOVED, 20)
    found |= {"moved_grey_levels": round(moved, 2), "shown_pictures_per_s": round(rate, 1)}
    if screenshot is not None:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot)
    pressed = time.monotonic()
    page.keyboard.press("Escape")
    until(page, "muted.length > 0")
    found["muted_after_s"] = round(time.monotonic() - pressed, 2)
    return {**found, "state": page.evaluate(STATE)}


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="128*128")
    parser.add_argument("--screenshot", type=Path)
    flags = parser.parse_args()
    with (
        serving(make_hub("tiny", flags.size)) as url,
        chromium(voice=VOICE) as browser,
        opened_page(browser, url) as page,
    ):
        found = measure(page, flags.screenshot)
        found |= {"size": flags.size, "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
