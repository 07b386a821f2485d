"""Whether each of two mouths follows its own voice, and not the other's.

    .venv/bin/python scripts/soak/characters_sync.py [--portraits 3 4] [--size 256*512] [--frames 96]

Two portraits side by side in one picture speak the two example voices at once. Printed: for each mouth the
correlation of its opening, as the lab sees it, with the openings that the drawings of the two voices had. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

import lipcast
from lipcast.lab.footage import Footage
from lipcast.lab.mouth import mouth_of_drawing

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from pixels import correlation
from portraits import side_by_side

ROOT = Path(__file__).parents[2]
VOICES = "speech_d_female", "speech_b_male"
SIDE = 256


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--portraits", type=int, nargs=2, default=[3, 4])
    parser.add_argument("--size", default="256*512")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--seed", type=int, default=420)
    flags = parser.parse_args()
    drives = [np.load(ROOT / "tests" / "data" / f"{voice}_mouth_open.npy") for voice in VOICES]
    boxes = f"0,0,{SIDE},{SIDE}", f"{SIDE},0,{SIDE},{SIDE}"
    video = lipcast.load("tiny").generate(
        image=side_by_side(flags.portraits, SIDE),
        characters=[
            lipcast.Character(box, ROOT / "examples" / f"{voice}.wav")
            for box, voice in zip(boxes, VOICES, strict=True)
        ],
        prompt="two people are talking, calm",
        size=flags.size,
        seed=flags.seed,
        num_clip=-(-flags.frames // 48),
    )
    frames = np.asarray(video.frames)[: flags.frames]
    middle = frames.shape[2] // 2
    result: dict[str, object] = {**vars(flags), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    for name, half in (("left", frames[:, :, :middle]), ("right", frames[:, :, middle:])):
        opening = mouth_of_drawing(Footage.of_frames(half)).opening
        for voice, drive in zip(VOICES, drives, strict=True):
            r = None if opening is None else correlation(opening, drive)
            result[f"{name}, {voice}"] = r
            print(f"{name} mouth with {voice}: {'not found' if r is None else format(r, '.3f')}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
