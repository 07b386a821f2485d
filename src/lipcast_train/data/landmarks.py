"""Where mouth, eyes and brows of a photographed face are, by the face mesh that comes with Lipcast.

Input: RGB frames. Output: points in pixels, or None where no face is seen or the package that runs the model
(lipcast[lab]) is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipcast.lab.face import face_track
from lipcast.lab.footage import Footage

Points = NDArray[np.float64]
Box = tuple[int, int, int, int]
LIPS = (61, 291, 0, 17, 13, 14, 78, 308)
"""Corners, outer edge above and below, inner edge above and below, inner corners."""
EYES = (33, 133, 159, 145, 263, 362, 386, 374)
BROWS = (105, 334, 70, 300, 107, 336)
_MARGIN = 0.35


def face_points(frames: Sequence[NDArray[np.uint8]]) -> Points | None:
    """Return the points of the face in each frame, [n, 468, 2]."""
    return face_track(Footage.of_frames(frames), None).points


def boxes_of(points: Points, *, side: int) -> dict[str, Box]:
    """Return where the mouth and the eyes are in all frames: x, y, width, height."""
    return {
        name: _around(points[:, list(which)].reshape(-1, 2), side)
        for name, which in (("mouth", LIPS), ("eyes", EYES + BROWS))
    }


def with_open_mouth(points: Points) -> Points:
    """Return the points of a face with its lower lip as low as it goes."""
    opened = points.copy()
    opened[[14, 17], 1] += 0.4 * float(np.linalg.norm(points[61] - points[291]))
    return opened


def turned(points: Points) -> float:
    """Return how far the tip of the nose is from the middle between the eyes, in distances of the eyes."""
    left, right, nose = points[33], points[263], points[1]
    across = right - left
    along = float((nose - (left + right) / 2) @ across) / float(across @ across)
    return abs(along)


def _around(points: Points, side: int) -> Box:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * float((high - low).max()) / 2
    left, top = (max(0, int(edge)) for edge in low - margin)
    right, bottom = (min(side, int(np.ceil(edge))) for edge in high + margin)
    return left, top, right - left, bottom - top
