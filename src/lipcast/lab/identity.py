"""Likeness of the face to the portrait's, by a face recognition network that the user supplies.

Input: footage with the face in it, the portrait with the face in it, the network. Output: metrics and a
curve. The network is a .tflite file: one square RGB face in, one vector out, as MobileFaceNet's
mobile_face_net.tflite is (112 x 112 to 192 numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import CheckpointError
from lipcast.lab.face import FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.pictures import Floats, Frame, bilinear
from lipcast.media.tflite import open_tflite

GROUP = "identity"
NAMES = ("similarity to the portrait", "least similarity", "similarity slope")
Curve = NDArray[np.float64]
_TEMPLATE_SIDE = 112
_TEMPLATE = np.array(
    [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
)
"""Positions of eyes, tip of the nose and corners of the mouth (x, y) that such networks expect, as seen."""
_EYE_LEFT, _EYE_RIGHT = (33, 133), (263, 362)
_NOSE, _MOUTH_LEFT, _MOUTH_RIGHT = 4, 61, 291
_MIDDLE, _SCALE = 127.5, 128.0
"""Pixels are given to the network as (p - 127.5) / 128."""


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A network, and the side of its square input."""

    side: int
    embed: Callable[[Floats], Floats]
    """From RGB [side, side, 3], scaled, to a vector."""

    def of(self, frame: Frame, points: NDArray[np.float64]) -> Curve:
        """Return the unit vector of the face whose 468 landmarks are given."""
        face = aligned(frame, points, self.side)
        vector = np.asarray(self.embed((face - _MIDDLE) / np.float32(_SCALE)), np.float64).ravel()
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def load_recogniser(path: Path) -> Recogniser:
    """Load the network in a .tflite file. Raises InputError and CheckpointError."""
    interpreter = open_tflite(path, flag="identity")
    source, result = interpreter.get_input_details(), interpreter.get_output_details()
    shape = tuple(source[0]["shape"])
    fits = len(source) == len(result) == 1 and len(shape) == 4
    if not fits or shape[0] != 1 or shape[1] != shape[2] or shape[3] != 3:
        raise CheckpointError(
            f"--identity: expected a network from one square RGB face to one vector, got one from "
            f"{'x'.join(map(str, shape))} in {path}; use mobile_face_net.tflite"
        )

    def embed(face: Floats) -> Floats:
        interpreter.set_tensor(source[0]["index"], face[None])
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result[0]["index"]), dtype=np.float32)

    return Recogniser(int(shape[1]), embed)


def identity(
    footage: Footage, face: FaceTrack, portrait: tuple[Frame, FaceTrack] | None, network: Recogniser
) -> tuple[list[Metric], Curve | None]:
    """Measure how much the face resembles the portrait's, frame by frame, and return the curve of it.

    similarity to the portrait: cosine of the two vectors, mean over the frames; -1..1, higher is better;
    what counts as one person depends on the network (0.4 to 0.6 and more with most). least similarity:
    of the worst frame. similarity slope: least squares, per second; 0 is best, under it the face drifts
    away. Source: face verification as ArcFace does it (Deng et al. 2019).
    """
    if portrait is None:
        return unavailable_identity("no portrait was given (--reference)"), None
    if face.points is None:
        return unavailable_identity(face.reason), None
    picture, known = portrait
    if known.points is None:
        return unavailable_identity(f"in the portrait {known.reason}"), None
    target = network.of(picture, known.points[0])
    pairs = zip(footage.open(), face.points, strict=False)
    curve = np.array([float(network.of(frame, points) @ target) for frame, points in pairs])
    slope = np.polyfit(np.arange(len(curve)) / footage.fps, curve, 1)[0] if len(curve) > 2 else 0.0
    worst = int(curve.argmin())
    return [
        measured(GROUP, NAMES[0], float(curve.mean()), "cosine", "higher"),
        measured(GROUP, NAMES[1], curve[worst], "cosine", "higher", note=f"at frame {worst}"),
        measured(GROUP, NAMES[2], float(slope), "per s", "zero"),
    ], curve


def unavailable_identity(reason: str) -> list[Metric]:
    """Return all metrics of this module as unavailable, with the reason."""
    return [unavailable(GROUP, name, reason) for name in NAMES]


def aligned(frame: Frame, points: NDArray[np.float64], side: int) -> Floats:
    """Return the face turned, scaled and moved so that its features lie where the network expects them.

    The similarity nearest to the five points by least squares (Umeyama 1991). RGB [side, side, 3].
    """
    found = np.stack([
        points[list(_EYE_LEFT)].mean(axis=0), points[list(_EYE_RIGHT)].mean(axis=0),
        points[_NOSE], points[_MOUTH_LEFT], points[_MOUTH_RIGHT],
    ])  # fmt: skip
    wanted = _TEMPLATE * (side / _TEMPLATE_SIDE)
    # As complex numbers a similarity is one factor and one shift.
    there, here = (p[:, 0] + 1j * p[:, 1] for p in (wanted, found))
    centred = there - there.mean()
    factor = (np.conj(centred) @ (here - here.mean())) / (np.conj(centred) @ centred)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    places = here.mean() + factor * (columns + 1j * rows - there.mean())
    return bilinear(frame, places.imag, places.real)
