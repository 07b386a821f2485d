"""A live session for half an hour over the WebSocket: memory, skew of picture and sound, frames a second.

    .venv/bin/python scripts/soak/live.py --minutes 30
    .venv/bin/python scripts/soak/live.py --minutes 1 --model fake     # the server alone, without a model

A server is started in this process, and a client speaks to it: beeps of 0.2 s in every second, with an
interruption now and then. The skew is how much longer the pictures are than the sound, at the end of every
fragment; sound may lag by two AAC frames (43 ms). The last line is one JSON document. Exits with 1 where
memory grows by 3 % or more after the first tenth, or the skew passes 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import websockets

from lipcast.api import load
from lipcast.config.generate_options import GenerateOptions
from lipcast.serve.hub import Hub
from lipcast.serve.run import RunningServer
from lipcast.serve.settings import ServeSettings

RATE, CHUNK = 48_000, 9600
BEEP_S, PERIOD_S = 0.2, 1.0
SPEECH_S, PAUSE_S = 12.0, 3.0
MAX_GROWTH, MAX_SKEW_S = 0.03, 0.08


def beeps(seconds: float) -> bytes:
    """16-bit PCM with a beep at the beginning of every second."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.5 * np.sin(2 * np.pi * 440 * t) * (t % PERIOD_S < BEEP_S)
    return (wave * 32767).astype("<i2").tobytes()


class Client:
    """Talks in real time, and measures what comes."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.init, self.pictures = b"", 0
        self.skews: list[float] = []
        self.memory: list[int] = []
        self.state: dict[str, Any] = {}

    async def run(self, url: str) -> None:
        """Speak and listen until the time is over."""
        request = urllib.request.Request(
            f"{url}api/sessions",
            b'{"portrait": "portrait_0.png"}',
            {"content-type": "application/json"},
        )
        answer = await asyncio.to_thread(urllib.request.urlopen, request)
        address = (
            f"{url.replace('http', 'ws', 1)}api/sessions/{json.load(answer)['session']}/stream"
        )
        async with websockets.connect(address, max_size=None) as socket:
            speaking = asyncio.create_task(self._speak(socket))
            async for message in socket:
                if isinstance(message, bytes):
                    await asyncio.to_thread(self._measure, message)
                else:
                    self._note(json.loads(message))
            await speaking

    def _note(self, message: dict[str, Any]) -> None:
        if message["type"] == "state":
            self.state = message
            self.memory.append(psutil.Process().memory_info().rss)

    async def _speak(self, socket: Any) -> None:
        utterance = 0
        while time.monotonic() < self.end:
            sound, utterance, began = beeps(SPEECH_S), utterance + 1, time.monotonic()
            for number, first in enumerate(range(0, len(sound), CHUNK)):
                await asyncio.sleep(began + number * CHUNK / (2 * RATE) - time.monotonic())
                await socket.send(sound[first : first + CHUNK])
            await socket.send('{"type": "interrupt"}' if utterance % 4 == 0 else '{"type": "end"}')
            await asyncio.sleep(PAUSE_S)
        await socket.send('{"type": "close"}')

    def _measure(self, data: bytes) -> None:
        """Count the pictures of a fragment, and compare where its tracks end."""
        if not self.init:
            self.init = data
            return
        ends: dict[str, float] = {}
        with av.open(io.BytesIO(self.init + data)) as file:
            for packet in file.demux():
                if packet.size:
                    end = float((packet.pts + packet.duration) * packet.time_base)
                    ends[packet.stream.type] = end
                    self.pictures += packet.stream.type == "video"
        if len(ends) == 2:
            self.skews.append(ends["video"] - ends["audio"])


def make_hub(model: str, size: str | None) -> Hub:
    """Return the hub of a server with a model, or with one that computes nothing."""
    settings = ServeSettings(port=0, max_session_s=86_400, idle_s=3600)
    options = GenerateOptions(size=size) if size else GenerateOptions()
    if model != "fake":
        return Hub(lambda: load(model), settings, options=options)
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from fake_live import FakeModel

    return Hub(FakeModel, settings, options=options)


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Run a server in a thread of this process; yields its address when the model is loaded or has failed."""
    server = RunningServer(hub)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not hub.is_ready and hub.failure is None:
            time.sleep(0.1)
        yield server.url
    finally:
        server.stop()
        thread.join()


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default="64*64")
    args = parser.parse_args()
    with serving(make_hub(args.model, args.size)) as url:
        client = Client(args.minutes)
        began = time.monotonic()
        asyncio.run(client.run(url))
        seconds = time.monotonic() - began
    settled = client.memory[len(client.memory) // 10 :]
    growth = settled[-1] / settled[0] - 1
    skew_s = max(abs(skew) for skew in client.skews)
    result = {
        "minutes": round(seconds / 60, 2), "model": args.model, "frames": client.pictures,
        "frames_per_s": round(client.pictures / seconds, 2), "rss_mib": round(settled[-1] / 2**20),
        "rss_growth": round(growth, 4), "largest_skew_s": round(skew_s, 4),
        "last_skew_s": round(client.skews[-1], 4), "interrupts": client.state.get("num_interrupts"),
        "dropped_sound_s": client.state.get("dropped_sound_s"),
    }  # fmt: skip
    print(json.dumps(result))
    return int(growth >= MAX_GROWTH or skew_s > MAX_SKEW_S)


if __name__ == "__main__":
    raise SystemExit(main())
