"""From "start" to the first picture on a warmed server: what a client waits for, and what it costs.

    .venv/bin/python scripts/soak/first_picture.py --sessions 5

A server is started in this process; a client opens sessions as the page does, and notes when the session is
open, when the stream is described and when the first pictures come. The first session is the one that the
server has opened ahead; the others have other portraits, which are not prepared, unless --same. CPU seconds
are those of the whole process, client included. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
import urllib.request
from pathlib import Path

import torch
import websockets

sys.path.append(str(Path(__file__).parent))
from live import make_hub, serving

PHASES = ("session", "stream", "picture")


def mark(times: dict[str, tuple[float, float]], phase: str) -> None:
    """Note the first time that a phase is reached."""
    times.setdefault(phase, (time.perf_counter(), time.process_time()))


async def first_picture(url: str, portrait: str) -> dict[str, tuple[float, float]]:
    """Open a session; returns when each phase was reached: seconds, CPU seconds."""
    times: dict[str, tuple[float, float]] = {}
    mark(times, "start")
    body = json.dumps({"portrait": portrait}).encode()
    request = urllib.request.Request(
        f"{url}api/sessions", body, {"content-type": "application/json"}
    )
    answer = await asyncio.to_thread(urllib.request.urlopen, request)
    mark(times, "session")
    address = f"{url.replace('http', 'ws', 1)}api/sessions/{json.load(answer)['session']}/stream"
    async with websockets.connect(address, max_size=None) as socket:
        for phase in ("stream", "picture"):
            while not isinstance(await socket.recv(), bytes):
                continue
            mark(times, phase)
        await socket.send('{"type": "close"}')
        async for _ in socket:
            continue
    return times


def main() -> None:
    """Measure; prints a line for every session."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default=None)
    parser.add_argument("--same", action="store_true", help="the same portrait each time, prepared")
    args = parser.parse_args()
    hub = make_hub(args.model, args.size)
    found: list[dict[str, tuple[float, float]]] = []
    with serving(hub) as url:
        names = hub.portraits.example_names
        for number in range(args.sessions):
            while args.same and number and not hub.is_prepared:
                time.sleep(0.1)
            name = names[0 if args.same else number % len(names)]
            times = asyncio.run(first_picture(url, name))
            found.append(times)
            began = times["start"]
            print("  ".join(f"{phase} {times[phase][0] - began[0]:.3f} s "
                            f"({times[phase][1] - began[1]:.3f} CPU s)" for phase in PHASES))  # fmt: skip
    figures = [
        {phase: [round(each[phase][i] - each["start"][i], 3) for i in (0, 1)] for phase in PHASES}
        for each in found
    ]
    print(json.dumps({
        "seconds_and_cpu_seconds": figures, "model": args.model,
        "size": args.size, "cpus": os.cpu_count(), "machine": platform.machine(),
        "load": os.getloadavg()[0], "threads": torch.get_num_threads(), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
