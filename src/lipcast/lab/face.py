"""Landmarks of a real face, by MediaPipe's face mesh, which comes with Lipcast.

Input: footage, and the path of another face mesh model where it is to be used. Output: `FaceTrack`, with the
reason where there is no face. No detector is needed: the model says how sure it is of a face, so the first
frame is searched square by square, and each later frame is looked at where the face was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import CheckpointError
from lipcast.lab.footage import Footage
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.pictures import Floats, Frame, bilinear
from lipcast.media.face_detector import FACE_MODELS, can_find_faces
from lipcast.media.tflite import open_tflite

GROUP = "expression"
_SIDE = 192
"""Pixels of the model's square input."""
_NUM_POINTS = 468
_MARGIN = 1.5
"""Side of the square that is looked at, in sides of the face found before."""
_MIN_PRESENCE = 0.5
_MIN_SHARE = 0.8
"""Share of the frames that must show a face for curves to mean something."""
_SCALES = (1.0, 0.7, 0.5, 0.35)
INNER_LIPS = 13, 14
"""Upper and lower."""
MOUTH_CORNERS = 78, 308
_EYES = ((33, 133, 159, 145), (263, 362, 386, 374))
"""Outer corner, inner corner, upper lid, lower lid."""
EYE_CORNERS = _EYES[0][0], _EYES[1][0]
"""The outer ones."""
_BROWS = ((105, 159), (334, 386))
"""Brow and the lid below it."""

Points = NDArray[np.float64]
Model = Callable[[Floats], tuple[Points, float]]
"""From RGB [192, 192, 3] in 0..1 to points [468, 2] in pixels of it, and how likely a face is, 0..1."""


@dataclass(frozen=True, slots=True)
class FaceTrack:
    """`points` [n, 468, 2] in pixels; None where `reason` says why."""

    points: Points | None
    confidence: float = 0.0
    """Mean of the model's probability that this is a face, 0..1."""
    reason: str = ""

    @property
    def opening(self) -> NDArray[np.float64] | None:
        """Distance of the inner lips, in distances between the eyes' outer corners; [n]."""
        return None if self.points is None else components(self.points)["mouth opening"]


def face_track(footage: Footage, model_file: Path | None) -> FaceTrack:
    """Return the face in every frame, by the model that comes with Lipcast or by another.

    Raises CheckpointError where the model cannot be used.
    """
    if model_file is None and not can_find_faces():
        return FaceTrack(None, reason="landmarks need pip install lipcast[lab]")
    return track(footage, load_model(model_file or FACE_MODELS / "face_landmark.tflite"))


def track(footage: Footage, model: Model) -> FaceTrack:
    """Follow one face; frames that lose it keep its last points."""
    found: list[Points] = []
    chances: list[float] = []
    square: tuple[float, float, float] | None = None
    for frame in footage.open():
        points, chance = _look(frame, square, model)
        chances.append(chance)
        if chance >= _MIN_PRESENCE:
            square = _around(points)
        found.append(points if chance >= _MIN_PRESENCE or not found else found[-1])
    share = float(np.mean(np.array(chances) >= _MIN_PRESENCE))
    if share < _MIN_SHARE:
        return FaceTrack(None, reason=f"a face was seen in {share:.0%} of the frames")
    return FaceTrack(np.stack(found), float(np.mean(chances)))


def components(points: Points) -> dict[str, NDArray[np.float64]]:
    """Return the movements of a face, [n] each, in distances between the outer corners of the eyes."""
    scale = _distance(points, *EYE_CORNERS)
    eyes = [_distance(points, upper, lower) for _, _, upper, lower in _EYES]
    brows = [_distance(points, brow, lid) for brow, lid in _BROWS]
    return {
        "mouth opening": _distance(points, *INNER_LIPS) / scale,
        "mouth width": _distance(points, *MOUTH_CORNERS) / scale,
        "eye opening": (eyes[0] + eyes[1]) / (2 * scale),
        "brow height": (brows[0] + brows[1]) / (2 * scale),
    }


def expression(face: FaceTrack) -> list[Metric]:
    """Measure how much a face expresses: the standard deviation over time of its components.

    Components: mouth opening, mouth width, eye opening, brow height, each in % of the distance between
    the outer corners of the eyes, so that size and distance do not matter; 0.., higher is livelier.
    Source: this project, on the points of MediaPipe's face mesh (Kartynnik et al. 2019).
    """
    if face.points is None:
        return [unavailable(GROUP, "richness", face.reason)]
    return [
        measured(GROUP, f"{name} spread", 100 * float(curve.std()), "% of the eyes", "higher")
        for name, curve in components(face.points).items()
    ]


def load_model(path: Path) -> Model:
    """Load the face mesh model in a .tflite file. Raises InputError and CheckpointError."""
    interpreter = open_tflite(path, flag="face_model")
    source = interpreter.get_input_details()[0]
    sizes = {int(np.prod(out["shape"])): out["index"] for out in interpreter.get_output_details()}
    if tuple(source["shape"]) != (1, _SIDE, _SIDE, 3) or not {1, 3 * _NUM_POINTS} <= set(sizes):
        raise CheckpointError(
            f"--face_model: expected a face mesh of {_NUM_POINTS} points on {_SIDE}x{_SIDE} pixels, "
            f"got another model in {path}; use face_landmark.tflite"
        )

    def run(picture: Floats) -> tuple[Points, float]:
        interpreter.set_tensor(source["index"], picture[None])
        interpreter.invoke()
        points = interpreter.get_tensor(sizes[3 * _NUM_POINTS]).reshape(_NUM_POINTS, 3)
        logit = float(interpreter.get_tensor(sizes[1]).ravel()[0])
        return points[:, :2].astype(np.float64), float(1 / (1 + np.exp(-np.clip(logit, -60, 60))))

    return run


def _look(
    frame: Frame, square: tuple[float, float, float] | None, model: Model
) -> tuple[Points, float]:
    """Return points in pixels of the frame and the chance of a face, where it was or anywhere."""
    if square is not None:
        points, chance = _at(frame, square, model)
        if chance >= _MIN_PRESENCE:
            return points, chance
    found = max((_at(frame, place, model) for place in _places(frame)), key=lambda seen: seen[1])
    # A square of the search is off by up to a quarter; around what it found, the points are exact.
    return _at(frame, _around(found[0]), model) if found[1] >= _MIN_PRESENCE else found


def _places(frame: Frame) -> list[tuple[float, float, float]]:
    """Return squares (centre x, centre y, side) of four sizes that overlap by half."""
    height, width = frame.shape[:2]
    places = []
    for scale in _SCALES:
        side = scale * min(height, width)
        rows = np.linspace(side / 2, height - side / 2, max(1, round(2 * (height / side - 1)) + 1))
        columns = np.linspace(side / 2, width - side / 2, max(1, round(2 * (width / side - 1)) + 1))
        places += [(float(x), float(y), side) for y in rows for x in columns]
    return places


def _at(frame: Frame, square: tuple[float, float, float], model: Model) -> tuple[Points, float]:
    """Return what the model sees in a square of the frame."""
    x, y, side = square
    corner = np.array([x - side / 2, y - side / 2])
    points, chance = model(_cut(frame, corner, side))
    return points * (side / _SIDE) + corner, chance


def _cut(frame: Frame, corner: NDArray[np.float64], side: float) -> Floats:
    """Return the square at the model's size, bilinear, edges repeated, 0..1."""
    steps = (np.arange(_SIDE) + 0.5) * (side / _SIDE) - 0.5
    seen = bilinear(frame, (corner[1] + steps)[:, None], (corner[0] + steps)[None])
    return seen / np.float32(255)


def _around(points: Points) -> tuple[float, float, float]:
    """Return the square to look at in the next frame."""
    low, high = points.min(axis=0), points.max(axis=0)
    x, y = (low + high) / 2
    return float(x), float(y), _MARGIN * float((high - low).max())


def _distance(points: Points, a: int, b: int) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(points[:, a] - points[:, b], axis=1))
