"""How much a picture changes at seams: segments that go on from each other, and independent ones.

    .venv/bin/python scripts/soak/seams.py --seams 50 --size "64*64" --infer_frames 48

Runs two jobs with the embedded model and compares the videos: mean change from frame to frame in grey
levels, medians over all seams. Inside: within blocks. Borders: between two blocks that are no seam. For
independent segments also what a hard cut would have been. Prints one JSON document.
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

from lipcast.cli.main import main as lipcast
from lipcast.jobs.local import LocalMaker
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.media.video import read_video

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
        for kind in ("continued", "independent"):
            submit(folder, voice, kind, arguments)
        assert run_jobs(Store(folder / "jobs"), LocalMaker(), tell=lambda _: None) == 0
        found = {
            "size": arguments.size,
            "infer_frames": int(arguments.infer_frames),
            "continued": continued(folder),
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


def submit(folder: Path, voice: Path, kind: str, arguments: argparse.Namespace) -> None:
    words = [
        "job", "submit", "--image", EXAMPLES / "portrait_0.png", "--audio", voice, "--quiet",
        "-o", folder / f"{kind}.mp4", "--size", arguments.size, "--infer_frames",
        arguments.infer_frames, "--segment", f"{SEGMENT_BLOCKS * 0.48}s", "--keep_segments",
        "--workspace", folder / "jobs", "--json",
        *(["--independent_segments"] if kind == "independent" else []),
    ]  # fmt: skip
    assert lipcast([str(word) for word in words]) == 0


def changes_of(path: Path) -> np.ndarray:
    """Grey levels from every frame to the next."""
    frames = read_video(path).frames
    pairs = pairwise(frames)
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairs])


def continued(folder: Path) -> dict[str, Any]:
    changes = changes_of(folder / "continued.mp4")
    after = np.arange(1, len(changes) + 1)
    seams = after % (BLOCK * SEGMENT_BLOCKS) == 0
    borders = (after % BLOCK == 0) & ~seams
    inside = after % BLOCK != 0
    return {
        "seams": int(seams.sum()),
        "inside": median(changes[inside]),
        "borders": median(changes[borders]),
        "at_seams": median(changes[seams]),
        "at_seams_p90": round(float(np.percentile(changes[seams], 90)), 2),
        "borders_p90": round(float(np.percentile(changes[borders], 90)), 2),
    }


def independent(folder: Path) -> dict[str, Any]:
    changes = changes_of(folder / "independent.mp4")
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
