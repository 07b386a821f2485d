"""Faces in a picture, by MediaPipe's short-range detector (BlazeFace), which comes with Lipcast.

Input: an RGB picture. Output: `FaceBox`es in pixels, the largest first. The model sees faces that fill a
tenth of its square or more, so a picture is searched whole and in squares of two sizes that overlap by half.
Needs ai-edge-litert, of lipcast[lab].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lipcast.media.tflite import open_tflite

if TYPE_CHECKING:
    from PIL.Image import Image

FACE_MODELS = Path(__file__).parents[1] / "assets" / "face"
_MODEL = FACE_MODELS / "face_detection_short_range.tflite"
_SIDE = 128
_GRIDS = ((16, 2), (8, 6))
"""Cells along a side, and anchors in each."""
_MIN_SCORE = 0.75
_MAX_OVERLAP = 0.3
"""Intersection over the smaller one from which two boxes are one face."""
_MIN_SHARE = 0.25
"""Faces smaller than this share of the largest one are not counted: a crowd behind, a picture on a wall."""
_SQUARES = (1.0, 0.5)
"""Sides of the squares that are searched, of the picture's short side."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FaceBox:
    """One face, in pixels."""

    left: float
    top: float
    side: float
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2


def can_find_faces() -> bool:
    """Return whether the package that runs the model is installed."""
    return find_spec("ai_edge_litert") is not None


def find_faces(image: Image) -> list[FaceBox]:
    """Return the faces of an RGB picture, the largest first. Raises InputError without ai-edge-litert."""
    interpreter = open_tflite(_MODEL, flag="crop", quiet=True)
    (source,), outputs = interpreter.get_input_details(), interpreter.get_output_details()
    by_width = {int(output["shape"][-1]): output["index"] for output in outputs}
    found: list[FaceBox] = []
    for left, top, side in _squares(image.width, image.height):
        interpreter.set_tensor(source["index"], _seen(image, left, top, side)[None])
        interpreter.invoke()
        boxes = interpreter.get_tensor(by_width[16])[0]
        scores = interpreter.get_tensor(by_width[1])[0, :, 0]
        found += _faces(boxes, scores, (left, top, side))
    return _largest(_distinct(found))


def _squares(width: int, height: int) -> Iterator[tuple[float, float, float]]:
    """Yield left, top and side: the whole picture with a border, then squares that overlap by half."""
    long, short = max(width, height), min(width, height)
    yield (width - long) / 2, (height - long) / 2, long
    for share in _SQUARES:
        side = share * short
        if side == long:
            continue
        across, down = (max(1, round(2 * (extent / side - 1)) + 1) for extent in (width, height))
        for top in np.linspace(0, height - side, down):
            for left in np.linspace(0, width - side, across):
                yield float(left), float(top), side


def _seen(image: Image, left: float, top: float, side: float) -> Floats:
    """Return a square of a picture as the model takes it, in -1..1; black outside of the picture."""
    from PIL import Image as PILImage

    square = image.transform(
        (2 * _SIDE, 2 * _SIDE), PILImage.Transform.EXTENT, (left, top, left + side, top + side),
        resample=PILImage.Resampling.BILINEAR,
    ) if side < 4 * _SIDE else image.crop(
        (round(left), round(top), round(left + side), round(top + side))
    )  # fmt: skip
    small = square.resize((_SIDE, _SIDE), PILImage.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / np.float32(127.5) - 1


def _anchors() -> Floats:
    """Return the centres of the anchors, [n, 2] in 0..1."""
    centres = []
    for cells, count in _GRIDS:
        along = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
        centres.append(np.repeat(grid, count, axis=0))
    return np.concatenate(centres).astype(np.float32)


def _faces(boxes: Floats, scores: Floats, square: tuple[float, float, float]) -> list[FaceBox]:
    left, top, side = square
    chances = 1 / (1 + np.exp(-scores.clip(-60, 60)))
    kept = chances >= _MIN_SCORE
    centres = boxes[kept, :2] / _SIDE + _anchors()[kept]
    sizes = boxes[kept, 2:4].max(axis=1) / _SIDE
    return [
        FaceBox(
            left + side * float(x - size / 2), top + side * float(y - size / 2), side * float(size),
            float(chance),
        )
        for (x, y), size, chance in zip(centres, sizes, chances[kept], strict=True)
    ]  # fmt: skip


def _distinct(found: list[FaceBox]) -> list[FaceBox]:
    """Keep the surest box of those that overlap."""
    kept: list[FaceBox] = []
    for face in sorted(found, key=lambda face: -face.score):
        if all(_overlap(face, other) < _MAX_OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(a: FaceBox, b: FaceBox) -> float:
    across = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    down = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    return max(0.0, across) * max(0.0, down) / min(a.side, b.side) ** 2


def _largest(found: list[FaceBox]) -> list[FaceBox]:
    faces = sorted(found, key=lambda face: -face.side)
    return [face for face in faces if face.side >= _MIN_SHARE * faces[0].side]
