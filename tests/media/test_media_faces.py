"""A face is found in a wide picture, cut out where that is wanted, and what a portrait lacks is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipcast.errors import InputError
from lipcast.media.face_crop import note_faces
from lipcast.media.image import load_portrait
from sounds import EXAMPLES

pytest.importorskip("ai_edge_litert")

from lipcast.media.face_detector import find_faces

PORTRAITS = sorted(EXAMPLES.glob("portrait_*.png"))
SIDE = 256


def wide(
    *places: tuple[int, int], size: tuple[int, int] = (1200, 400), side: int = SIDE
) -> Image.Image:
    """A plain picture with portraits at some places (left, top)."""
    image = Image.new("RGB", size, (120, 150, 180))
    for path, place in zip(PORTRAITS, places, strict=False):
        image.paste(Image.open(path).convert("RGB").resize((side, side)), place)
    return image


@pytest.mark.parametrize("path", PORTRAITS, ids=lambda path: path.stem)
def test_every_example_has_one_face_in_its_middle(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (face,) = find_faces(Image.open(path).convert("RGB"))
    assert np.abs(np.array(face.centre) - SIDE / 2).max() < 0.12 * SIDE
    note_faces(load_portrait(path), str(path))
    assert not caplog.records


@pytest.mark.parametrize("left", [0, 300, 700, 1200 - SIDE])
def test_a_face_in_a_wide_picture_is_centred(left: int) -> None:
    picture = wide((left, 80))
    cut = load_portrait(picture, crop="face")
    assert cut.width == cut.height <= 400
    (face,) = find_faces(cut)
    assert face.side > 0.3 * cut.width
    if 100 < left < 800:
        assert abs(face.centre[0] - cut.width / 2) < 0.08 * cut.width
    assert load_portrait(picture).size == (1200, 400)


def test_the_largest_of_several_faces_is_taken() -> None:
    picture = wide((100, 80), (800, 120))
    picture.paste(Image.open(PORTRAITS[2]).convert("RGB").resize((380, 380)), (420, 10))
    cut = load_portrait(picture, crop="face")
    assert find_faces(cut)[0].side > 150


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (wide(), "no face was found in it"),
        (wide((100, 80), (700, 80)), "shows 2 faces"),
        (wide((900, 500), size=(1600, 1000), side=200), "its face is small (1"),
    ],
)
def test_what_a_portrait_shows_is_said(
    picture: Image.Image, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    note_faces(picture, "me.png")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"me.png: {words}")


def test_a_crop_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no face was found in the picture; use --crop center"):
        load_portrait(wide(), crop="face")
    monkeypatch.setattr("lipcast.media.face_crop.can_find_faces", lambda: False)
    with pytest.raises(InputError, match=r"pip install lipcast\[lab\]"):
        load_portrait(wide((0, 0)), crop="face")
