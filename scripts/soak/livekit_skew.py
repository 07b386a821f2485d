"""How far apart LiveKit's runner shows pictures and plays their sound, and how soon an interruption is heard.

    .venv/bin/python scripts/soak/livekit_skew.py --seconds 60
    .venv/bin/python scripts/soak/livekit_skew.py --seconds 60 --model tiny     # with the load of a model

The real `AvatarRunner` with its native sources, in a room that publishes to nobody. An agent says segments of
six seconds with pauses of one, and then is interrupted ten times in the middle of a segment. Skew: when a
picture is handed to its source, less when its sound is played by the other; positive is a late picture. The
last line is one JSON document. Exits with 1 where a skew is beyond 45 ms, an interruption takes more than
200 ms, or the agent is told of a beginning of speech that was none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from livekit.agents.voice.avatar import QueueAudioOutput

TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "integrations")]

from livekit_room import RATE, Events, Room, Watched, say  # noqa: E402

from fake_live import FakeModel  # noqa: E402
from lipcast.api import load  # noqa: E402
from lipcast.config.generate_options import GenerateOptions  # noqa: E402
from lipcast.integrations.livekit import Avatar  # noqa: E402

SEGMENT_S, PAUSE_S, NUM_INTERRUPTIONS = 6.0, 1.0, 10
MOST_SKEW_MS, MOST_SILENCE_MS = 45, 200


async def until(events: Events, name: str, count: int) -> None:
    """Wait until an event has come so often."""
    while events.names.count(name) < count:
        await asyncio.sleep(0.005)


async def talk(voice: QueueAudioOutput, events: Events, seconds: float) -> None:
    """Say segments, one after the other, for so long."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        await say(voice, SEGMENT_S)
        count += 1
        await until(events, "finished", count)
        await asyncio.sleep(PAUSE_S)


async def interrupt(
    voice: QueueAudioOutput, events: Events, watched: Watched, delay_s: float
) -> dict[str, float]:
    """Interrupt a segment; returns the milliseconds until the agent knows, and until the last sound."""
    started, interrupted = events.names.count("started"), events.names.count("interrupted")
    await say(voice, SEGMENT_S)
    await until(events, "started", started + 1)
    await asyncio.sleep(delay_s)
    pressed = time.monotonic()
    voice.clear_buffer()
    await until(events, "interrupted", interrupted + 1)
    await asyncio.sleep(PAUSE_S)
    return {
        "acknowledged_ms": 1000 * (events.times[-1] - pressed),
        "last_sound_ms": 1000 * max(0.0, watched.played[-1] - pressed),
    }


async def measure(model: Any, seconds: float) -> dict[str, Any]:
    """Return the figures of a model."""
    live = model.live(
        image=str(TESTS.parent / "examples/portrait_0.png"), prompt="", sample_rate=48_000,
        options=GenerateOptions(size="64*64", sample_steps=1),
    )  # fmt: skip
    voice = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
    avatar = Avatar(live, Room("viewer"), voice)
    watched, events = Watched(avatar), Events(voice)
    await avatar.start()
    await asyncio.sleep(PAUSE_S)
    await talk(voice, events, seconds)
    skews = 1000 * np.array(watched.skews_s)
    cuts = [
        await interrupt(voice, events, watched, 0.5 + 0.037 * n) for n in range(NUM_INTERRUPTIONS)
    ]
    await avatar.aclose()
    num_segments = events.names.count("finished")
    pairs = zip(events.names[::2], events.names[1::2], strict=True)
    return {
        "pairs": len(skews),
        "skew_ms": {
            "least": round(skews.min(), 1), "median": round(float(np.median(skews)), 1),
            "most": round(skews.max(), 1),
        },
        "segments": num_segments,
        "positions_s": sorted({round(position, 2) for position in events.positions[:num_segments]}),
        "interruptions": {name: round(max(cut[name] for cut in cuts), 1) for name in cuts[0]},
        "false_starts": sum(first != "started" or second == "started" for first, second in pairs),
    }  # fmt: skip


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", default="fake")
    args = parser.parse_args()
    model = FakeModel() if args.model == "fake" else load(args.model)
    result = asyncio.run(measure(model, args.seconds))
    model.close()
    result |= {"model": args.model, "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))
    skew, cuts = result["skew_ms"], result["interruptions"]
    is_bad = (
        max(-skew["least"], skew["most"]) > MOST_SKEW_MS or max(cuts.values()) > MOST_SILENCE_MS
    )
    return int(is_bad or result["false_starts"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
