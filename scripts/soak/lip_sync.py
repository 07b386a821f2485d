"""Does the mouth follow the voice: every beardless example portrait with both held-out voices, several seeds.

    .venv/bin/python scripts/soak/lip_sync.py --seeds 3

Correlation with the drive track that belongs to each voice, by two measures: `count`, pixels of the drawn
mouth's dark inside (tests/pixels.py), and `lab`, as `lipcast evaluate` sees the mouth. `as_shipped` is what a
user gets; `reference` is the public implementation's arithmetic: float32, all four steps one after the
other. Portrait 1 has a beard; skin of portrait 2 has the colours that `count` looks for, so that it is left
out of the summary. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import lipcast
from lipcast.lab.footage import Footage
from lipcast.lab.mouth import mouth_of_drawing

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from pixels import correlation, mouth_opening  # noqa: E402

PORTRAITS, UNCOUNTABLE = (0, 2, 3, 4, 5), 2
VOICES = ("speech_b_male", "speech_d_female")
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as_shipped": ({}, {"schedule": "wavefront"}),
    "reference": ({"precision": "fp32"}, {"schedule": "sequential", "fold_last_step": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for name, (loading, options) in HOW.items():
        model = lipcast.load("tiny", device="cpu", **loading)
        for portrait, voice, seed in product(PORTRAITS, VOICES, range(arguments.seeds)):
            found = measure(model, portrait, voice, seed=420 + seed, **options)
            rows.append({"how": name, "portrait": portrait, "voice": voice[7], **found})
            print(rows[-1], file=sys.stderr)
    print(json.dumps({"pairs": [summary(rows, name) for name in HOW], "rows": rows}, indent=2))


def measure(
    model: lipcast.Lipcast, portrait: int, voice: str, **options: Any
) -> dict[str, float | int]:
    drive = np.load(ROOT / "tests" / "data" / f"{voice}_mouth_open.npy")
    frames = model.generate(
        image=ROOT / "examples" / f"portrait_{portrait}.png",
        audio=ROOT / "examples" / f"{voice}.wav",
        prompt="a person is talking, calm",
        **options,
    ).frames
    seen = mouth_of_drawing(Footage.of_frames(frames))
    assert seen.opening is not None, seen.reason
    return {
        "seed": options["seed"],
        "count": round(correlation(mouth_opening(frames), drive), 3),
        "lab": round(correlation(seen.opening, drive), 3),
    }


def summary(rows: list[dict[str, Any]], how: str) -> dict[str, Any]:
    """Mean and range over seeds of every pair, and of all that can be counted."""
    mine = [row for row in rows if row["how"] == how]
    table: dict[str, Any] = {"how": how}
    for portrait, voice in product(PORTRAITS, "bd"):
        pair = [row for row in mine if (row["portrait"], row["voice"]) == (portrait, voice)]
        table[f"{portrait}/{voice}"] = {
            measure: spread([row[measure] for row in pair]) for measure in ("count", "lab")
        }
    counted = [row for row in mine if row["portrait"] != UNCOUNTABLE]
    table["all"] = {name: spread([row[name] for row in counted]) for name in ("count", "lab")}
    return table


def spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(values)), 3), "least": min(values), "most": max(values)
    }  # fmt: skip


if __name__ == "__main__":
    main()
