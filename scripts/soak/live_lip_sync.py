"""Lip sync of a live session beside that of the offline video of the same portrait and sound.

    .venv/bin/python scripts/soak/live_lip_sync.py

A server with the embedded model runs in this process. A client speaks an example voice over the WebSocket and
keeps the stream. In both videos the mouth's opening is counted in pixels and correlated with the track that
drove the drawing of the voice, at lags of -1, 0 and +1 frame from where the voice is heard. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import urllib.request
import wave
from pathlib import Path

import av
import numpy as np
import websockets
from numpy.typing import NDArray

sys.path += [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]
from live import make_hub, serving

import lipcast
from pixels import correlation, mouth_opening

ROOT = Path(__file__).parents[2]
FPS, NUM_FRAMES = 25, 84
SEED, PROMPT = 420, "a person is talking, calm"


async def record(url: str, portrait: str, voice: Path) -> bytes:
    """Speak a voice in a session, and return the stream as one file."""
    wanted = {"portrait": portrait, "prompt": PROMPT, "seed": SEED}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}api/sessions", json.dumps(wanted).encode(), headers)
    key = json.load(await asyncio.to_thread(urllib.request.urlopen, request))["session"]
    address = f"{url.replace('http', 'ws', 1)}api/sessions/{key}/stream"
    parts: list[bytes] = []
    async with websockets.connect(address, max_size=None) as socket:
        with wave.open(str(voice), "rb") as file:
            rate = file.getframerate()
            await socket.send(json.dumps({"type": "audio", "sample_rate": rate, "channels": 1}))
            while pcm := file.readframes(rate // 2):
                await socket.send(pcm)
        await socket.send('{"type": "finish"}')
        async for message in socket:
            if isinstance(message, bytes):
                parts.append(message)
    return b"".join(parts)


def read(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the pictures of a file, and the loudness of its sound by picture."""
    with av.open(io.BytesIO(content)) as file:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with av.open(io.BytesIO(content)) as file:
        rate = file.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    return pictures, loudness(sound, rate)


def loudness(sound: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """Return the RMS of the sound of every picture."""
    per_frame = rate // FPS
    whole = sound[: len(sound) // per_frame * per_frame].astype(np.float64)
    return np.sqrt((whole.reshape(-1, per_frame) ** 2).mean(axis=1))


def heard_at(recorded: NDArray[np.float64], voice: NDArray[np.float64]) -> int:
    """Return the picture at which the voice begins."""
    starts = range(len(recorded) - len(voice) + 1)
    return max(starts, key=lambda start: correlation(recorded[start : start + len(voice)], voice))


def by_lag(pictures: NDArray[np.uint8], drive: NDArray[np.floating]) -> dict[str, float]:
    """Return the correlation of the mouth with the track, by lag in frames."""
    opening = mouth_opening(pictures[:NUM_FRAMES])[1:-1]
    lags = (-1, 0, 1)
    return {str(lag): correlation(opening, drive[1 + lag :]) for lag in lags}


def main() -> None:
    """Measure; print both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portrait", default="portrait_0.png")
    parser.add_argument("--voice", default="speech_b_male")
    args = parser.parse_args()
    voice = ROOT / "examples" / f"{args.voice}.wav"
    drive = np.load(ROOT / "tests" / "data" / f"{args.voice}_mouth_open.npy")
    with serving(make_hub("tiny", None)) as url:
        pictures, sound = read(asyncio.run(record(url, args.portrait, voice)))
    offline = lipcast.load("tiny").generate(
        image=ROOT / "examples" / args.portrait, audio=voice, prompt=PROMPT, seed=SEED, num_clip=2
    )
    with wave.open(str(voice), "rb") as file:
        pcm = np.frombuffer(file.readframes(NUM_FRAMES * file.getframerate() // FPS), np.int16)
        start = heard_at(sound, loudness(pcm, file.getframerate()))
    live, whole = by_lag(pictures[start:], drive), by_lag(offline.frames, drive)
    difference = max(live.values()) - max(whole.values())
    print(f"live {live}, offline {whole}")
    print(json.dumps({
        "live": live, "offline": whole, "difference": difference, "first_frame": start,
        "portrait": args.portrait, "voice": args.voice, "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
