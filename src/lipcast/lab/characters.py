"""Lip sync of several characters in one video: each mouth with its own voice, and with those of the others.

Input: footage; who is where and says what; the portrait where there is one. Output: metrics. Each mouth is
looked for in the rectangle around its character's region, as in a video of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import InputError
from lipcast.lab.face import face_track
from lipcast.lab.footage import Footage
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.mouth import mouth_of_drawing
from lipcast.lab.mouth_select import Mouth, mouth_select, why
from lipcast.lab.sync import GROUP, Curve, correlation, loudness
from lipcast.media.characters import Character, fit_masks, region_masks
from lipcast.media.image import load_portrait


def lip_sync_of_characters(
    footage: Footage,
    characters: Sequence[Character],
    *,
    portrait: Path | None = None,
    face_model: Path | None = None,
) -> list[Metric]:
    """Measure how closely each mouth follows its own voice, and how closely the others'.

    own voice: Pearson's r of the mouth's opening with the loudness of the character's sound; -1..1, higher is
    better. voice n: with that of another character; 0 is best, unless the two speak alike.
    Regions are in pixels of the portrait, or of the video where none is given. Source: this project.
    """
    masks = _masks(footage, characters, portrait)
    voice = cache(partial(loudness, fps=footage.fps))  # each is compared with every mouth
    found: list[Metric] = []
    for number, mask in enumerate(masks, 1):
        part = _cut(footage, mask)
        both = mouth_select(part, mouth_of_drawing(part), face_track(part, face_model))
        found += _with_voices(number, both[0], characters, voice, note=why(both))
    return found


def _masks(
    footage: Footage, characters: Sequence[Character], portrait: Path | None
) -> NDArray[np.uint8]:
    first = next(iter(footage.open()), None)
    if first is None:
        raise InputError(f"expected a video, got {footage.name} without any picture")
    height, width, _ = first.shape
    image = load_portrait(first if portrait is None else portrait)
    return fit_masks(region_masks([each.region for each in characters], image), height, width)


def _cut(footage: Footage, mask_HW: NDArray[np.uint8]) -> Footage:
    """Return the rectangle around a region."""
    rows, columns = np.nonzero(mask_HW)
    if not len(rows):
        raise InputError(
            "characters: one of the regions is not in the video; give it in the portrait"
        )
    place = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return Footage(footage.name, footage.fps, lambda: (frame[place] for frame in footage.open()))


def _with_voices(
    number: int,
    mouth: Mouth,
    characters: Sequence[Character],
    voice: Callable[..., Curve],
    *,
    note: str,
) -> list[Metric]:
    group, opening, found = f"{GROUP} of character {number}", mouth.opening, []
    for other, character in enumerate(characters, 1):
        is_own = other == number
        name = "own voice" if is_own else f"voice {other}"
        if opening is None or character.audio is None:
            reason = mouth.reason if opening is None else "the character says nothing"
            found.append(unavailable(group, name, reason))
            continue
        loud = voice(cast("Path", character.audio), num_frames=len(opening))
        better, said = ("higher", note) if is_own else ("zero", "")
        found.append(measured(group, name, correlation(opening, loud), "", better, note=said))
    return found
