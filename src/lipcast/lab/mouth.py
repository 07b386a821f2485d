"""Opening of the mouth of a drawn face, frame by frame, without knowing its colours.

Input: footage. Output: `MouthTrack`. The mouth is the blob in the lower middle of the picture that
varies most over time; its opening is the first principal component of the blob's pixels, with the
sign that makes an open mouth the one that looks less like the skin around it. Nothing of the sound is
used, so that a correlation with the sound means something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipcast.lab.footage import Footage
from lipcast.lab.pictures import Floats, Frame

_SEARCH_SIDE = 256
"""Frames are averaged down to about so many pixels on the short side."""
_TOP, _BOTTOM, _LEFT, _RIGHT = 0.5, 0.85, 0.25, 0.75
"""Region in which a mouth is looked for, as fractions of the picture."""
_BLUR = 0.04
"""Width of the blur before the variance is taken, of the short side: moving outlines vanish in it."""
_EDGE = 0.4
"""The blob ends where its variation falls below this share of its peak."""
_MIN_SPREAD = 2.0
"""Grey levels of variation at the blob's peak below which nothing moves there."""
_MIN_EXPLAINED = 0.2
"""Share of the blob's variance that one opening must explain."""
_MOST_PIXELS = 500
_RING_FROM, _RING_WIDTH = 5, 4
"""The ring of skin around the mouth: how far away, and how wide, in pixels of the shrunken frame."""
_MIN_FRAMES = 12


@dataclass(frozen=True, slots=True)
class MouthTrack:
    """`opening` [n] runs from 0 (closed) to 1 (widest); None where `reason` says why."""

    opening: NDArray[np.float64] | None
    confidence: float = 0.0
    """0..1: the share of the mouth's variance that one opening explains."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, bottom, left, right, in pixels of the video."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Region:
    """Pixels of the mouth in a shrunken frame."""

    mask: NDArray[np.bool_]
    factor: int

    @property
    def skin(self) -> NDArray[np.bool_]:
        """A ring around the mouth, a little away from it."""
        inner = _widened(self.mask, _RING_FROM)
        return _widened(inner, _RING_WIDTH) & ~inner


def mouth_of_drawing(footage: Footage) -> MouthTrack:
    """Return the opening of the mouth of a drawn face.

    Definition: see the module. Range 0..1 of the mouth's own 2nd to 98th percentile, no unit; neither
    way is better. Source: this project; on portraits of the embedded model it follows the track that
    drew them closer than a count of the mouth's dark pixels does.
    """
    found = _find_mouth(footage)
    if isinstance(found, str):
        return MouthTrack(None, reason=found)
    pixels = _mouth_pixels(footage, found)
    component, explained = _first_component(pixels.reshape(len(pixels), -1).astype(np.float32))
    if explained < _MIN_EXPLAINED:
        reason = f"what varies most explains {explained:.0%} only: not a mouth that opens"
        return MouthTrack(None, reason=reason)
    unlike_skin = np.abs(pixels - _skin_colour(footage, found)).mean(axis=(1, 2))
    if _correlation(component, unlike_skin) < 0:
        component = -component
    return MouthTrack(_normalised(component), explained, _box(found))


def _find_mouth(footage: Footage) -> _Region | str:
    """Return the mouth's pixels, or why none were found."""
    total: Floats | None = None
    squares: Floats | None = None
    num_frames, factor = 0, 1
    for frame in footage.open():
        factor = max(1, min(frame.shape[:2]) // _SEARCH_SIDE)
        grey = _shrunk(frame, factor).mean(axis=2)
        smooth = _blur(grey, max(3, round(_BLUR * min(grey.shape)) | 1))
        total = smooth if total is None else total + smooth
        squares = smooth**2 if squares is None else squares + smooth**2
        num_frames += 1
    if total is None or squares is None or num_frames < _MIN_FRAMES:
        return f"{num_frames} frames; at least {_MIN_FRAMES} are needed to see a mouth move"
    variance = squares / num_frames - (total / num_frames) ** 2
    mask = _blob(np.sqrt(np.maximum(variance, 0)))
    if mask is None:
        return "nothing in the lower middle of the picture moves"
    return _Region(mask, factor)


def _blob(spread: Floats) -> NDArray[np.bool_] | None:
    """Return the connected region around the strongest variation in the search area."""
    height, width = spread.shape
    rows, columns = np.mgrid[:height, :width]
    inside = (rows >= _TOP * height) & (rows < _BOTTOM * height)
    inside &= (columns >= _LEFT * width) & (columns < _RIGHT * width)
    central = np.exp(-(((columns - width / 2) / (0.15 * width)) ** 2))
    wide = _blur(spread, 2 * max(3, round(_BLUR * min(height, width)) | 1) + 1)
    peak = np.unravel_index(int((wide * central * inside).argmax()), spread.shape)
    near = spread[max(0, peak[0] - 4) : peak[0] + 5, max(0, peak[1] - 4) : peak[1] + 5]
    if near.max() < _MIN_SPREAD:
        return None
    return _grown(peak, (spread > _EDGE * near.max()) & inside)


def _grown(seed: tuple[np.intp, ...], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return everything allowed that touches the seed through what is allowed."""
    region = np.zeros_like(allowed)
    region[seed] = True
    size = 0
    while region.sum() > size:
        size = int(region.sum())
        region |= _widened(region, 1) & allowed
    return region


def _widened(region: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Add the neighbours above, below, left and right, so many times."""
    for _ in range(pixels):
        wider = region.copy()
        wider[1:] |= region[:-1]
        wider[:-1] |= region[1:]
        wider[:, 1:] |= region[:, :-1]
        wider[:, :-1] |= region[:, 1:]
        region = wider
    return region


def _skin_colour(footage: Footage, region: _Region) -> Floats:
    """Return the RGB of the skin around the mouth: median over the ring, mean over the frames."""
    ring = region.skin
    medians = [np.median(_shrunk(frame, region.factor)[ring], axis=0) for frame in footage.open()]
    return np.asarray(np.mean(medians, axis=0), dtype=np.float32)


def _mouth_pixels(footage: Footage, region: _Region) -> NDArray[np.uint8]:
    """Return [n, pixels, 3], at most `_MOST_PIXELS` of them, evenly spread."""
    rows, columns = np.nonzero(region.mask)
    step = -(-len(rows) // _MOST_PIXELS)
    rows, columns = rows[::step], columns[::step]
    picked = [
        np.rint(_shrunk(frame, region.factor)[rows, columns]).astype(np.uint8)
        for frame in footage.open()
    ]
    return np.stack(picked)


def _first_component(samples_nD: Floats) -> tuple[NDArray[np.float64], float]:
    """Return the score of each sample, and the share of the variance that it explains."""
    centred = (samples_nD - samples_nD.mean(axis=0)).astype(np.float64)
    n, dim = centred.shape
    gram = centred.T @ centred if dim < n else centred @ centred.T
    values, vectors = np.linalg.eigh(gram)
    explained = float(values[-1] / max(values.sum(), 1e-12))
    return (centred @ vectors[:, -1] if dim < n else vectors[:, -1]), explained


def _normalised(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.quantile(curve, (0.02, 0.98))
    normal: NDArray[np.float64] = np.clip((curve - low) / max(float(high - low), 1e-12), 0, 1)
    return normal


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-12)


def _box(region: _Region) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(region.mask)
    ends = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    top, bottom, left, right = (int(end) * region.factor for end in ends)
    return top, bottom, left, right


def _shrunk(frame: Frame, factor: int) -> Floats:
    """Average RGB over squares of `factor` pixels."""
    height, width = (side // factor * factor for side in frame.shape[:2])
    squares = frame[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    small: Floats = squares.mean(axis=(1, 3), dtype=np.float32)
    return small


def _blur(picture: Floats, size: int) -> Floats:
    """Return the mean over a square of odd side around every pixel, edges repeated."""
    half = size // 2
    padded = np.pad(picture, half + 1, mode="edge").astype(np.float64)[:-1, :-1]
    sums = padded.cumsum(axis=0).cumsum(axis=1)
    whole = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return np.asarray(whole / size**2, dtype=np.float32)
