"""How far pictures and sound are apart in a browser that meets Pipecat's bot: flashes and beeps.

    .venv/bin/python scripts/soak/pipecat_skew.py --beeps 12

The example of integrations/pipecat runs with a model that computes nothing, and is white while something is
said. A beep comes every two seconds; the page in headless Chromium notes when the picture turns white
and when the sound is loud: positive is a late picture. Then something long is interrupted; how long sound is
heard after the InterruptionFrame was queued is measured. Needs a Chromium of the system. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "integrations")]

import numpy as np  # noqa: E402
from loguru import logger  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat_bot import ServedBot  # noqa: E402

from browser import chromium  # noqa: E402

RATE = 24_000
FLAGS = "--allow-loopback-in-peer-connection", "--disable-features=WebRtcHideLocalIpsWithMdns"
WATCH = """() => {
    const video = document.getElementById('video'), data = new Float32Array(256);
    const seen = window.seen = { flashes: [], beeps: [], lastLoud: 0 };
    const context = new AudioContext(), analyser = context.createAnalyser();
    analyser.fftSize = 256;
    context.createMediaStreamSource(video.srcObject).connect(analyser);
    let loud = true, white = true;  // what begins so has not been seen to rise
    setInterval(() => {
        analyser.getFloatTimeDomainData(data);
        const now = performance.timeOrigin + performance.now(), level = Math.max(...data);
        if (level > 0.1) seen.lastLoud = now;
        if (level > 0.1 && !loud) seen.beeps.push(now);
        if (level > 0.1 || level < 0.02) loud = level > 0.1;
    }, 4);
    const drawn = new OffscreenCanvas(8, 8).getContext('2d', { willReadFrequently: true });
    const look = (now, meta) => {
        drawn.drawImage(video, 0, 0, 8, 8);
        const level = drawn.getImageData(4, 4, 1, 1).data[0];
        if (level > 190 && !white) seen.flashes.push(performance.timeOrigin + meta.expectedDisplayTime);
        if (level > 190 || level < 150) white = level > 190;
        video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
}"""


def tone(seconds: float, loud_s: float) -> TTSAudioRawFrame:
    """Return a tone, and silence after it."""
    samples = 16_000 * np.sin(np.arange(round(seconds * RATE)) * 0.12)
    samples[round(loud_s * RATE) :] = 0
    return TTSAudioRawFrame(samples.astype(np.int16).tobytes(), RATE, 1)


def beep_and_watch(served: ServedBot, page: Any, num_beeps: int) -> list[float]:
    """Return how late each picture was, in ms."""
    for _ in range(num_beeps):
        served.say(TTSStartedFrame(), tone(0.48, 0.2), TTSStoppedFrame())
        page.wait_for_timeout(2000)
    seen = page.evaluate("seen")
    pairs = [
        min((flash - beep for flash in seen["flashes"]), key=abs, default=1e9)
        for beep in seen["beeps"]
    ]
    return sorted(skew for skew in pairs if abs(skew) < 1000)


def interrupt_and_listen(served: ServedBot, page: Any) -> float:
    """Return for how long sound is heard after an interruption, in ms."""
    count = page.evaluate("seen.beeps.length")
    served.say(TTSStartedFrame(), tone(10, 10), TTSStoppedFrame())
    while page.evaluate("seen.beeps.length") == count:
        page.wait_for_timeout(50)
    page.wait_for_timeout(1500)
    pressed = time.time() * 1000
    served.say(InterruptionFrame())
    page.wait_for_timeout(2500)
    return max(0.0, page.evaluate("seen.lastLoud") - pressed)


def measure(num_beeps: int, num_interruptions: int) -> dict[str, Any]:
    """Meet the bot once."""
    with ServedBot() as served, chromium(*FLAGS) as browser:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(served.url)
        began = time.monotonic()
        page.click("#talk")
        while not page.evaluate("document.getElementById('video').currentTime > 0.5"):
            page.wait_for_timeout(50)
        connected_s = time.monotonic() - began
        page.evaluate(WATCH)
        page.wait_for_timeout(1000)
        skews = beep_and_watch(served, page, num_beeps)
        heard = [interrupt_and_listen(served, page) for _ in range(num_interruptions)]
        page.close()
        version = browser.version
    return {
        "beeps": num_beeps, "matched": len(skews), "first_picture_s": round(connected_s, 2),
        "skew_ms": {
            "least": round(skews[0]), "median": round(statistics.median(skews)), "most": round(skews[-1]),
        } if skews else None,
        "heard_after_interrupt_ms": [round(each) for each in heard],
        "chromium": version, "cpus": os.cpu_count(), "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beeps", type=int, default=12)
    parser.add_argument("--interruptions", type=int, default=3)
    args = parser.parse_args()
    logger.remove()
    print(json.dumps(measure(args.beeps, args.interruptions)))


if __name__ == "__main__":
    main()
