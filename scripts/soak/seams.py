"""How much a picture changes at seams: segments that go on from each other, and independent ones.

    .venv/bin/python scripts/soak/seams.py --seams 50 --size "64*64" --infer_frames 48

Mean change from frame to frame in grey levels, medians over all seams, made with the embedded model. Inside:
within blocks. Borders: between two blocks that are no seam. Continued segments are compared as they leave the
decoder, in the finished MP4, and in what it would be if key frames at seams were made like all others.
Independent ones are compared in the finished MP4; beside it stands what a hard cut would have been. Prints
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lipcast.api import load
from lipcast.cli.main import main as lipcast
from lipcast.jobs.local import LocalRenderer
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.media.concat import concat
from lipcast.media.video import VideoWriter, read_video

EXAMPLES = Path(__file__).parents[2] / "examples"
SEGMENT_BLOCKS = 4
BLOCK = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seams", type=int, default=50)
    parser.add_argument("--size", default="64*64")
    parser.add_argument("--infer_frames", default="48")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        voice = long_voice(folder / "voice.wav", (arguments.seams + 1) * SEGMENT_BLOCKS * 0.48)
        submit(folder, voice, arguments)
        assert run_jobs(Store(folder / "jobs"), LocalRenderer(), log=lambda _: None) == 0
        found = {
            "size": arguments.size,
            "infer_frames": int(arguments.infer_frames),
            "continued": continued(folder, voice, arguments),
            "independent": independent(folder),
        }
    print(json.dumps(found, indent=2))


def long_voice(path: Path, seconds: float) -> Path:
    """The examples' voices, over and over."""
    sounds = []
    for example in sorted(EXAMPLES.glob("*.wav")):
        with wave.open(str(example)) as file:
            sounds.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.resize(np.concatenate(sounds), round(seconds * 16_000)).tobytes())
    return path


def submit(folder: Path, voice: Path, arguments: argparse.Namespace) -> None:
    words = [
        "job", "submit", "--image", EXAMPLES / "portrait_0.png", "--audio", voice, "--quiet",
        "-o", folder / "independent.mp4", "--size", arguments.size, "--infer_frames",
        arguments.infer_frames, "--segment", f"{SEGMENT_BLOCKS * 0.48}s", "--keep_segments",
        "--workspace", folder / "jobs", "--json", "--independent_segments",
    ]  # fmt: skip
    assert lipcast([str(word) for word in words]) == 0


def changes_of(frames: np.ndarray) -> np.ndarray:
    """Grey levels from every frame to the next."""
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)])


def continued(folder: Path, voice: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    frames = in_block_ranges(voice, arguments)
    found = {"decoded": seams_of(frames)}
    for name, goes_on in (("in_mp4", True), ("in_mp4_with_plain_key_frames", False)):
        found[name] = seams_of(encoded(folder / name, frames, goes_on=goes_on))
    return found


def encoded(folder: Path, frames: np.ndarray, *, goes_on: bool) -> np.ndarray:
    """What a player shows of the segments; `goes_on`: as jobs write them."""
    folder.mkdir()
    paths: list[Path] = []
    for segment in np.split(frames, len(frames) // (BLOCK * SEGMENT_BLOCKS)):
        after = paths[-1] if goes_on and paths else None
        paths.append(folder / f"{len(paths):05d}.mp4")
        with VideoWriter(
            paths[-1], width=frames.shape[2], height=frames.shape[1], sample_rate=16_000,
            num_channels=1, after=after,
        ) as writer:  # fmt: skip
            for block in np.split(segment, SEGMENT_BLOCKS):
                writer.write(block, np.zeros((BLOCK * 640, 1), np.float32))
    concat(paths, folder / "whole.mp4")
    return read_video(folder / "whole.mp4").frames


def seams_of(frames: np.ndarray) -> dict[str, Any]:
    changes = changes_of(frames)
    after = np.arange(1, len(changes) + 1)
    seams = after % (BLOCK * SEGMENT_BLOCKS) == 0
    borders = (after % BLOCK == 0) & ~seams
    inside = after % BLOCK != 0
    return {
        "seams": int(seams.sum()),
        "inside": median(changes[inside]),
        "borders": median(changes[borders]),
        "at_seams": median(changes[seams]),
        "after_seams": median(changes[1:][seams[:-1]]),
        "at_seams_p90": round(float(np.percentile(changes[seams], 90)), 2),
        "borders_p90": round(float(np.percentile(changes[borders], 90)), 2),
    }


def in_block_ranges(voice: Path, arguments: argparse.Namespace) -> np.ndarray:
    """The pictures of segments that go on from each other."""
    model, snapshot, frames = load("tiny", device="cpu"), None, []
    for segment in range(1, arguments.seams + 2):
        with model.stream(
            image=EXAMPLES / "portrait_0.png", audio=voice, snapshot=snapshot, size=arguments.size,
            infer_frames=int(arguments.infer_frames), end_block=segment * SEGMENT_BLOCKS,
        ) as session:  # fmt: skip
            frames += [block.frames for block in session]
            snapshot = session.snapshot
    return np.concatenate(frames)


def independent(folder: Path) -> dict[str, Any]:
    changes = changes_of(read_video(folder / "independent.mp4").frames)
    segments = json.loads((folder / "independent.mp4.json").read_text())
    frames = [segment["frames"] for segment in segments["segments"]]
    begins = np.cumsum(frames[:-1]) + BLOCK * np.arange(len(frames) - 1)
    fades = [changes[first - 1 : first + BLOCK] for first in begins]
    elsewhere = np.ones(len(changes), bool)
    for first in begins:
        elsewhere[first - 1 : first + BLOCK] = False
    return {
        "seams": len(begins),
        "elsewhere": median(changes[elsewhere]),
        "in_fades": median(np.concatenate(fades)),
        "largest_in_each_fade": median(np.array([fade.max() for fade in fades])),
        "hard_cut": median(np.array(hard_cuts(folder / "jobs" / segments["job"]))),
    }


def hard_cuts(folder: Path) -> list[float]:
    """From the last picture of a piece to the first of the next, had they been set side by side."""
    found = []
    edges = sorted(folder.glob("past-*"))
    videos = sorted(folder.glob("segment-*"))
    for video, following in zip(videos, edges[1:], strict=False):
        last = read_video(video).frames[-1].astype(np.int16)
        with np.load(following) as arrays:
            found.append(float(np.abs(arrays["head"][0] - last).mean()))
    return found


def median(values: np.ndarray) -> float:
    return round(float(np.median(values)), 2)


if __name__ == "__main__":
    main()
