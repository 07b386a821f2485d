"""Makes docs/img/contact-sheet.png: frames of real videos of the embedded model.

.venv/bin/python scripts/readme_picture.py
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import lipcast
from lipcast.media.image import contact_sheet

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "docs" / "img" / "contact-sheet.png"
ROWS = (
    ("portrait_0.png", "speech_d_female.wav", "a cheerful smile, lively"),
    ("portrait_2.png", "speech_b_male.wav", "neutral, calm"),
    ("portrait_4.png", "speech_a_male.wav", "surprised, lively"),
)
COLUMNS = 6
TILE = (160, 160)
EVERY = 6
"""Frames from one column to the next: 0.24 s."""


def row(model: lipcast.Lipcast, portrait: str, voice: str, prompt: str) -> list[NDArray[np.uint8]]:
    """Frames of one video, EVERY frames apart."""
    examples = ROOT / "examples"
    video = model.generate(
        image=examples / portrait, audio=examples / voice, prompt=prompt, num_clip=1
    )
    chosen = islice(video.frames, EVERY, None, EVERY)
    return [np.asarray(Image.fromarray(frame).resize(TILE)) for frame in islice(chosen, COLUMNS)]


if __name__ == "__main__":
    tiny = lipcast.load("tiny")
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([frame for how in ROWS for frame in row(tiny, *how)], COLUMNS, SHEET)
    # A palette takes a third of the bytes.
    with Image.open(SHEET) as sheet:
        small = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
    small.save(SHEET, optimize=True)
