"""How far pictures and sound are apart in a browser: flashes and beeps, over the WebSocket and over WebRTC.

    .venv/bin/python scripts/soak/skew.py --beeps 12

A server with a model that computes nothing shows a brighter picture while something is said. The page in
headless Chromium says a beep every two seconds, and notes when the picture turns bright and when the sound is
loud: positive is a late picture. Then it says something long, and notes how long sound is heard after an
interruption; over WebRTC without the page's own muting. Needs a Chromium of the system. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
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
    const flashes = [], beeps = [], data = new Float32Array(256);
    let loud = false, white = false, lastLoud = 0;
    const listen = setInterval(() => {
        analyser.getFloatTimeDomainData(data);
        const now = performance.now(), level = Math.max(...data);
        if (level > 0.1) lastLoud = now;
        if (level > 0.1 && !loud) beeps.push(now);
        if (level > 0.1 || level < 0.02) loud = level > 0.1;
    }, 4);
    const canvas = new OffscreenCanvas(8, 8), drawn = canvas.getContext('2d', { willReadFrequently: true });
    let before = 0;
    const look = (now, meta) => {
        drawn.drawImage(video, 0, 0, 8, 8);
        const pixels = drawn.getImageData(0, 0, 8, 8).data;
        const level = pixels.reduce((sum, value) => sum + value, 0) / pixels.length;
        if (level > before + 15 && !white) { white = true; flashes.push(meta.expectedDisplayTime); }
        if (level < before - 15) white = false;
        before = level;
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
    const skews = beeps.map((beep) => flashes.reduce(
        (best, flash) => Math.abs(flash - beep) < Math.abs(best) ? flash - beep : best, Infinity));
    for (let n = 0; n < 8; n++) session.speak(tone(0.5, 0.5), rate);
    const count = beeps.length;
    for (let n = 0; n < 200 && beeps.length === count; n++) await wait(50);
    await wait(1000);
    const pressed = performance.now();
    session.send({ type: 'interrupt' });
    if (kind === 'websocket') session.player.interrupt();
    await wait(2500);
    clearInterval(listen);
    session.end();
    await wait(500);
    return { skews, flashes: flashes.length, beeps: beeps.length, heard: lastLoud - pressed };
}"""


def measure(browser: Any, url: str, kind: str, num_beeps: int) -> dict[str, Any]:
    """Return the figures of one transport."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    while page.evaluate("document.getElementById('example').disabled"):
        page.wait_for_timeout(100)
    found = page.evaluate(MEASURE, [kind, num_beeps])
    page.close()
    skews = sorted(skew for skew in found["skews"] if skew is not None and abs(skew) < 1000)
    return {
        "beeps": found["beeps"], "flashes": found["flashes"], "matched": len(skews),
        "skew_ms": {
            "least": round(skews[0]), "median": round(statistics.median(skews)), "most": round(skews[-1]),
        } if skews else None,
        "heard_after_interrupt_ms": round(max(0.0, found["heard"])),
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
        result |= {"chromium": browser.version, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
