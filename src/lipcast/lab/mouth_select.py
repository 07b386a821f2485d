"""Which way of seeing a mouth is believed: colour and shape, or landmarks.

Input: footage and what both ways found. Output: `Mouth`. Neither way's own confidence can decide: the
landmark model is as sure of a drawn face as of a photo and reads its mouth badly, and what varies most in
a photo may be a curtain. So both are asked the same: how much of what the pixels of the mouth do does
your opening explain? The pixels lie where the landmarks say, and move with the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.lab.face import EYE_CORNERS, INNER_LIPS, MOUTH_CORNERS, FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.mouth import MouthTrack
from lipcast.lab.pictures import bilinear, texture

BY_COLOUR, BY_LANDMARKS = "colour and shape", "landmarks"
Curve = NDArray[np.float64]
_PHOTO_TEXTURE = 0.25
_ON_PHOTOS = (
    "colour and shape find the mouth of a drawing only, and on this photo landmarks are needed"
)
_ROWS, _COLUMNS = 16, 20
"""Pixels that are looked at, over a rectangle as wide and as high as the mouth is wide."""


@dataclass(frozen=True, slots=True)
class Mouth:
    """One way's opening [n]; None where `reason` says why."""

    way: str
    opening: Curve | None
    confidence: float = 0.0
    """Share of the variation of the mouth's pixels that the opening explains, 0..1; of landmarks, times
    the probability of a face."""
    reason: str = ""


def mouth_select(footage: Footage, drawn: MouthTrack, face: FaceTrack) -> list[Mouth]:
    """Return both ways of seeing the mouth, the believed one first.

    Where only one way found a mouth it is believed, colour and shape with the share of its own region.
    """
    by_colour = Mouth(BY_COLOUR, drawn.opening, drawn.confidence, drawn.reason)
    if face.points is None or face.opening is None:
        if drawn.opening is not None and _is_photo(footage):
            by_colour = Mouth(BY_COLOUR, None, reason=f"{_ON_PHOTOS} ({face.reason})")
        return [by_colour, Mouth(BY_LANDMARKS, None, reason=face.reason)]
    pixels = _mouth_pixels(footage, face.points)
    sure = face.confidence * explained(pixels, face.opening)
    by_landmarks = Mouth(BY_LANDMARKS, face.opening, sure)
    if drawn.opening is None:
        return [by_landmarks, by_colour]
    by_colour = Mouth(BY_COLOUR, drawn.opening, explained(pixels, drawn.opening))
    return sorted([by_colour, by_landmarks], key=lambda mouth: -mouth.confidence)


def _is_photo(footage: Footage) -> bool:
    """Return whether the first two seconds look like a photo, and not like a drawing."""
    frames = islice(footage.open(), 0, 2 * VIDEO_FPS, VIDEO_FPS // 5)
    return float(np.median([texture(frame) for frame in frames])) > _PHOTO_TEXTURE


def why(both: list[Mouth]) -> str:
    """Explain why the first way is believed."""
    first, second = both
    if second.opening is None:
        return f"of the mouth by {first.way}; by {second.way}: {second.reason}"
    return (
        f"of the mouth by {first.way}, which explains {first.confidence:.0%} of what its pixels do; "
        f"by {second.way} {second.confidence:.0%}"
    )


def explained(pixels: Curve, opening: Curve) -> float:
    """Return the share of the variance of pixels [n, p] that a line in the opening [n] explains, 0..1."""
    count = min(len(pixels), len(opening))
    curve = opening[:count] - opening[:count].mean()
    centred = pixels[:count] - pixels[:count].mean(axis=0)
    total = float((centred**2).sum() * (curve @ curve))
    return float(((curve @ centred) ** 2).sum()) / total if total > 0 else 0.0


def _mouth_pixels(footage: Footage, points: Curve) -> Curve:
    """Return [n, pixels]: a rectangle that is fixed to the eyes, so that the head's motion is not in it."""
    plane = points[..., 0] + 1j * points[..., 1]
    left, right = (plane[:, corner] for corner in EYE_CORNERS)
    middle, axis = (left + right) / 2, right - left
    lips = plane[:, list(INNER_LIPS)].mean(axis=1)
    place = _median((lips - middle) / axis)
    width = np.median(
        np.abs(plane[:, MOUTH_CORNERS[0]] - plane[:, MOUTH_CORNERS[1]]) / np.abs(axis)
    )
    rows, columns = np.mgrid[-0.5 : 0.5 : _ROWS * 1j, -0.5 : 0.5 : _COLUMNS * 1j]
    grid = place + width * (columns + 1j * rows)
    found = []
    for frame, centre, turn in zip(footage.open(), middle, axis, strict=False):
        where = centre + turn * grid
        found.append(bilinear(frame, where.imag, where.real).ravel())
    return np.stack(found).astype(np.float64)


def _median(values: NDArray[np.complex128]) -> complex:
    return complex(np.median(values.real), np.median(values.imag))
