"""How far pictures and sound are apart in a browser: flashes and beeps, over the WebSocket and over WebRTC.

    .venv/bin/python scripts/soak/skew.py --beeps 12

A server with a model that computes nothing shows a brighter picture while something is said. The page in
headless Chromium says a beep every two seconds, and notes how bright the picture and how loud the sound is: a
positive skew is a late picture. Then it says something long, and notes how long sound is heard after an
interruption, and how many pictures of speech are shown; over WebRTC without the page's own muting. Needs a
Chromium of the system. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "serve")]

from running import Running  # noqa: E402

from browser import chromium  # noqa: E402

MEASURE = """async ([kind, numBeeps]) => {
    const wait = (ms) => new Promise((next) => setTimeout(next, ms));
    document.getElementById('transport').value = kind;
    const video = document.getElementById('video'), rate = 48000;
    await session.start(settings());
    while (video.currentTime < 1) await wait(50);
    const context = new AudioContext(), analyser = context.createAnalyser();
    analyser.fftSize = 256;
    const source = kind === 'websocket' ? context.createMediaElementSource(video)
        : context.createMediaStreamSource(video.srcObject);
    source.connect(analyser);
    analyser.connect(context.destination);
    const pictures = [], sounds = [], data = new Float32Array(256);
    let lastLoud = 0;
    const listen = setInterval(() => {
        analyser.getFloatTimeDomainData(data);
        const now = performance.now(), level = Math.max(...data);
        if (level > 0.1) lastLoud = now;
        sounds.push([now, level]);
    }, 4);
    const canvas = new OffscreenCanvas(8, 8), drawn = canvas.getContext('2d', { willReadFrequently: true });
    const look = (now, meta) => {
        drawn.drawImage(video, 0, 0, 8, 8);
        const pixels = drawn.getImageData(0, 0, 8, 8).data;
        const level = pixels.reduce((sum, value) => sum + value, 0) / pixels.length;
        pictures.push([meta.expectedDisplayTime, level]);
        video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
    const tone = (seconds, of) => Float32Array.from({ length: rate * seconds },
        (_, i) => i < rate * of ? 0.5 * Math.sin(i * 0.06) : 0);
    for (let n = 0; n < numBeeps; n++) {
        session.speak(tone(0.48, 0.2), rate);
        session.send({ type: 'end' });
        await wait(2000);
    }
    const said = [pictures.length, sounds.length], asked = performance.now();
    for (let n = 0; n < 8; n++) session.speak(tone(0.5, 0.5), rate);
    for (let n = 0; n < 200 && lastLoud < asked; n++) await wait(50);
    await wait(1000);
    const pressed = performance.now();
    session.send({ type: 'interrupt' });
    if (kind === 'websocket') session.player.interrupt();
    await wait(2500);
    clearInterval(listen);
    session.end();
    await wait(500);
    sounds.length = said[1];
    const later = pictures.filter(([time]) => time > pressed);
    pictures.length = said[0];
    return { pictures, sounds, later, heard: lastLoud - pressed };
}"""
LOUD = 0.02, 0.1
"""Levels of sound below which it is quiet, and above which it is loud."""
_FLASH = 15
"""Grey levels by which a flash is brighter, at the least."""
_MOST_MS = 1000


def rises(samples: Sequence[Sequence[float]], low: float, high: float) -> list[float]:
    """Return the times at which a level passes `high` after it was below `low`.

    One that is high in the first sample has not been seen to rise.
    """
    found: list[float] = []
    is_armed = False
    for time_ms, level in samples:
        if level > high and is_armed:
            found.append(time_ms)
        is_armed = level < low or (is_armed and level <= high)
    return found


def bounds_of(pictures: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the levels below which a picture is dark, and above which it is bright."""
    levels = [level for _, level in pictures]
    dark, bright = min(levels, default=0.0), max(levels, default=0.0)
    if bright - dark < _FLASH:
        return -inf, inf
    return dark + (bright - dark) / 4, dark + (bright - dark) / 2


def flashes_of(pictures: Sequence[Sequence[float]]) -> list[float]:
    """Return when the picture turned bright."""
    return rises(pictures, *bounds_of(pictures))


def until_dark(pictures: Sequence[Sequence[float]], bright: float) -> int:
    """Return how many pictures are shown before they stay dark."""
    shown = [number for number, (_, level) in enumerate(pictures, 1) if level > bright]
    return shown[-1] if shown else 0


def skews_ms(flashes: Sequence[float], beeps: Sequence[float]) -> list[float]:
    """Return how late the nearest picture of every beep was, in the order of the beeps."""
    nearest = [min((flash - beep for flash in flashes), key=abs, default=inf) for beep in beeps]
    return [skew for skew in nearest if abs(skew) < _MOST_MS]


def measure(browser: Any, url: str, kind: str, num_beeps: int) -> dict[str, Any]:
    """Return the figures of one transport."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    while page.evaluate("document.getElementById('example').disabled"):
        page.wait_for_timeout(100)
    found = page.evaluate(MEASURE, [kind, num_beeps])
    page.close()
    flashes, beeps = flashes_of(found["pictures"]), rises(found["sounds"], *LOUD)
    skews = skews_ms(flashes, beeps)
    return {
        "beeps": len(beeps), "flashes": len(flashes), "matched": len(skews),
        "skew_ms": {
            "least": round(min(skews)), "median": round(statistics.median(skews)), "most": round(max(skews)),
            "each": [round(skew) for skew in skews],
        } if skews else None,
        "load": round(os.getloadavg()[0], 2),
        "heard_after_interrupt_ms": round(max(0.0, found["heard"])),
        "pictures_of_speech_after_interrupt": until_dark(
            found["later"], bounds_of(found["pictures"])[1]
        ),
    }  # fmt: skip


def main() -> None:
    """Measure both transports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beeps", type=int, default=12)
    args = parser.parse_args()
    with Running(grace_s=60) as running, chromium("--allow-loopback-in-peer-connection") as browser:
        result: dict[str, Any] = {
            kind: measure(browser, running.server.url, kind, args.beeps)
            for kind in ("websocket", "webrtc")
        }
        result |= {"chromium": browser.version, "cpus": os.cpu_count()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
