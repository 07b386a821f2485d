"""How well the mouth follows the voice: every beardless example portrait with every voice that has a truth.

    .venv/bin/python benchmarks/lip_sync.py

Correlation of the mouth's opening, counted in pixels, with the track that drove the voice's drawing, at
lags of -1, 0 and +1 frame. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import lipcast

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from pixels import correlation, mouth_opening  # noqa: E402

BEARDLESS = (0, 2, 3, 4, 5)
VOICES = ("speech_b_male", "speech_d_female")


def main() -> None:
    model = lipcast.load("tiny")
    rows = []
    for portrait in BEARDLESS:
        for voice in VOICES:
            lags = measure(model, portrait, voice)
            rows.append({"portrait": portrait, "voice": voice, "correlation": lags})
            print(
                f"portrait_{portrait} {voice:<16}",
                *(f"{v:6.3f}" for v in lags.values()),
                flush=True,
            )
    print(json.dumps({"precision": str(model.bundle.dit.dtype), "rows": rows}))


def measure(model: lipcast.Lipcast, portrait: int, voice: str) -> dict[str, float]:
    """Correlation by lag, in frames."""
    examples = ROOT / "examples"
    video = model.generate(
        image=examples / f"portrait_{portrait}.png",
        audio=examples / f"{voice}.wav",
        prompt="a person is talking, calm",
        num_clip=2,
    )
    drive = np.load(ROOT / "tests" / "data" / f"{voice}_mouth_open.npy")
    opening = mouth_opening(video.frames[:84])
    inner = opening[1:-1]
    return {str(lag): correlation(inner, drive[1 + lag :]) for lag in (-1, 0, 1)}


if __name__ == "__main__":
    main()
