#!/usr/bin/env python3
"""Write the picture of docs/training-data.md: drawn people, and one of them who speaks."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from lipcast_train.data.drawing.person import Variety, person
from lipcast_train.data.drawing.portrait import draw
from lipcast_train.data.movement import at_rest
from lipcast_train.data.procedural import ProceduralClips
from lipcast_train.data.words import EXPRESSIONS, Mood

SEED, SIDE, ACROSS = 5, 128, 7
PEOPLE = 74, 47, 44, 46, 50, 71, 52, 40, 72, 54, 57, 73, 49, 67
OUTPUT = Path(__file__).parents[1] / "docs" / "img" / "training-portraits.png"
COLOURS = 144
"""Of the palette: keeps the file small."""


def people() -> np.ndarray:
    """Rows of people, as drawings."""
    variety = Variety(photo_share=0)
    faces = [draw(person(SEED, index, variety), at_rest(), side=2 * SIDE)[0] for index in PEOPLE]
    rows = [np.concatenate(faces[i : i + ACROSS], axis=1) for i in range(0, len(faces), ACROSS)]
    return np.concatenate(rows)


def expressions() -> np.ndarray:
    """One person at rest and in every expression, speaking."""
    source = ProceduralClips(8, seed=3, num_blocks=3, side=2 * SIDE, augment=False)
    someone = person(SEED, 44, Variety(photo_share=0))
    speech = source.voices.speech(36 * 640, 7)
    clips = [source.clip_of(someone, speech, Mood(name, "", name), seed=1) for name in EXPRESSIONS]
    opening = clips[0].mouth.opening_T[14:]
    shown = 14 + int(np.argmin(abs(opening - 0.55)))
    shut = 14 + int(np.argmin(opening))
    frames = [clips[0].portrait_HWC, *(clip.frames_THWC[shown] for clip in clips)]
    frames.append(clips[1].frames_THWC[shut])
    return np.concatenate(frames[:ACROSS], axis=1)


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    output = parser.parse_args().output
    sheet = Image.fromarray(np.concatenate([people(), expressions()]))
    small = sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
    output.parent.mkdir(parents=True, exist_ok=True)
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
