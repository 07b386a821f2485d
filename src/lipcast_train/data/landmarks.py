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
from lipcast_train.data.movement import Curve

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


def mouth_opening(points: Points) -> Curve:
    """Return the distance of the inner lips, 0 to 1 of the mouth's width at the most; [n]."""
    gap = np.linalg.norm(points[:, 13] - points[:, 14], axis=1)
    width = np.linalg.norm(points[:, 61] - points[:, 291], axis=1)
    opening: Curve = np.clip(gap / np.maximum(width, 1e-6), 0, 1).astype(np.float32)
    return opening


def _around(points: Points, side: int) -> Box:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * float((high - low).max()) / 2
    left, top = (max(0, int(edge)) for edge in low - margin)
    right, bottom = (min(side, int(np.ceil(edge))) for edge in high + margin)
    return left, top, right - left, bottom - top
