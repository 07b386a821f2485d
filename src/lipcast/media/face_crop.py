"""Faces of a portrait: warnings before the work, and a portrait cut out of a wide photo.

Input: an RGB picture. Output: notes in the log; or a square around the largest face. Both need the package
that runs the face detector (lipcast[lab]); without it nothing is said, and the crop is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.face_detector import can_find_faces, find_faces

if TYPE_CHECKING:
    from PIL.Image import Image

Square = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
_LOG = logger("media.face_crop")
_MARGIN = 2.6
"""Side of the square that is cut out, in sides of the face's box (from the brows to the chin)."""
_BELOW = 0.12
"""How far below the middle of the face the square's middle lies, in sides of the face."""
_SMALL = 0.15
"""Share of the short side under which a face is small for a portrait."""


def note_faces(image: Image, name: str) -> None:
    """Log a warning where a portrait shows no face, several, or a small one."""
    if not can_find_faces():
        return
    faces = find_faces(image)
    if not faces:
        _LOG.warning("%s: no face was found in it; the video may show no mouth that moves", name)
    elif len(faces) > 1:
        _LOG.warning(
            "%s: shows %d faces; a portrait of one works best (--crop face takes the largest)",
            name,
            len(faces),
        )
    elif faces[0].side < _SMALL * min(image.size):
        _LOG.warning(
            "%s: its face is small (%.0f %% of the short side); --crop face cuts it out",
            name,
            100 * faces[0].side / min(image.size),
        )


def crop_to_face(image: Image, name: str) -> Image:
    """Return the square around the largest face, as far as the picture goes.

    Raises InputError where no face is found, or the face detector is not installed.
    """
    if not can_find_faces():
        raise InputError(
            "--crop face: the package that finds faces is missing; pip install lipcast[lab], "
            "or use --crop center"
        )
    square = face_square(image)
    if square is None:
        raise InputError(
            f"--crop face: no face was found in {name}; use --crop center, or crop it yourself"
        )
    left, top, right, bottom = square
    return image.crop((round(left), round(top), round(right), round(bottom)))


def face_square(image: Image) -> Square | None:
    """Return the square around the largest face, as far as the picture goes; None where there is no face.

    Needs the face detector.
    """
    faces = find_faces(image)
    if not faces:
        return None
    face = faces[0]
    side = min(_MARGIN * face.side, *image.size)
    x, y = face.centre
    left = _within(x - side / 2, image.width - side)
    top = _within(y + _BELOW * face.side - side / 2, image.height - side)
    return left, top, left + side, top + side


def _within(value: float, most: float) -> float:
    return min(max(0.0, value), most)
