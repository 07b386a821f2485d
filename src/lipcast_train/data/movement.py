"""How a person moves, frame by frame: what the drive makes and the renderer draws.

Shapes: T frames at 25 frames/s. Positions are in half widths of the face, angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lipcast_train.data.clips import MouthTrack

Curve = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Movement:
    """Every movable part of a portrait; 0 is rest, but for `lids_T`, where 1 is an open eye."""

    mouth: MouthTrack
    corners_T: Curve
    """Corners of the mouth, -1 (down) to 1 (a broad smile)."""
    brows_T: Curve
    """Height of the brows, -1 to 1."""
    brow_tilt_T: Curve
    """Inner ends of the brows, -1 (down, as in anger) to 1 (up, as in sorrow)."""
    lids_T: Curve
    """0 (closed) to 1 (open); above 1 the eyes are wide."""
    gaze_x_T: Curve
    gaze_y_T: Curve
    yaw_T: Curve
    pitch_T: Curve
    roll_T: Curve
    shift_x_T: Curve
    shift_y_T: Curve

    def __len__(self) -> int:
        return len(self.corners_T)

    def curves(self) -> dict[str, Curve]:
        """Return every curve by its name, those of the mouth among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return own | {field.name: getattr(self.mouth, field.name) for field in fields(self.mouth)}


def at_rest(num_frames: int = 1) -> Movement:
    """Return a person who looks ahead with a closed mouth."""
    zeros = np.zeros(num_frames, np.float32)
    mouth = MouthTrack(zeros, zeros + np.float32(0.5), zeros, zeros, zeros)
    return Movement(mouth, zeros, zeros, zeros, zeros + np.float32(1), *[zeros] * 7)
