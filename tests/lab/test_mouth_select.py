"""The way of seeing a mouth that is right is believed, on drawn faces and on a photo-like one."""

from __future__ import annotations

import numpy as np
import pytest

from drawn import SIDE, drawn_clip, syllable_opening
from lipcast.lab.face import FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.mouth import MouthTrack, mouth_of_drawing
from lipcast.lab.mouth_select import BY_COLOUR, BY_LANDMARKS, Mouth, explained, mouth_select, why

NUM_FRAMES = 72
OPENING = syllable_opening(NUM_FRAMES)


def landmarks(opening: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """[n, 468, 2]: eyes, corners of the mouth and inner lips of the drawn face, all else between."""
    points = np.full((len(opening), 468, 2), (64.0, 60.0))
    for index, place in {33: (44, 48), 263: (84, 48), 78: (52, 85), 308: (76, 85)}.items():
        points[:, index] = place
    points[:, 13] = np.column_stack([np.full(len(opening), 64), 85 - 8 * opening])
    points[:, 14] = np.column_stack([np.full(len(opening), 64), 85 + 8 * opening])
    points[..., 0] += shift[:, None]
    return points


def photo() -> tuple[list[np.ndarray], np.ndarray]:
    """A face with skin like a photo's, in a room where a curtain blows; and where the head is."""
    rng = np.random.default_rng(3)
    pores = rng.normal(0, 14, (SIDE, SIDE, 1))
    shift = 5 * np.sin(np.arange(NUM_FRAMES) / 11)
    clip = []
    for i, frame in enumerate(drawn_clip(OPENING, sway=shift)):
        lit = frame + np.roll(pores, round(shift[i]), axis=1)
        lit[75:, 80:112] += 110 * np.sin(i / 5)  # over cheek and shoulder
        clip.append(np.clip(lit, 0, 255).astype(np.uint8))
    return clip, shift


def correlation(mouth: Mouth) -> float:
    assert mouth.opening is not None
    return float(np.corrcoef(mouth.opening, OPENING)[0, 1])


@pytest.mark.parametrize("skin", ["light", "dark"])
def test_on_a_drawing_colour_and_shape_are_believed(skin):
    """The landmarks are as sure of the face as can be, and see its mouth as noise."""
    footage = Footage.of_frames(drawn_clip(OPENING, skin=skin))
    noise = np.random.default_rng(1).random(NUM_FRAMES)
    sway = 1.5 * np.sin(np.arange(NUM_FRAMES) / 9)
    face = FaceTrack(landmarks(noise, sway), confidence=1.0)
    both = mouth_select(footage, mouth_of_drawing(footage), face)
    assert [mouth.way for mouth in both] == [BY_COLOUR, BY_LANDMARKS]
    assert both[0].confidence > 0.3 > 0.1 > both[1].confidence
    assert correlation(both[0]) > 0.75 and abs(correlation(both[1])) < 0.4
    assert "by colour and shape, which explains" in why(both)


def test_on_a_photo_landmarks_are_believed():
    """What varies most in the picture is sure to be seen, and is no mouth."""
    clip, shift = photo()
    footage = Footage.of_frames(clip)
    drawn = mouth_of_drawing(footage)
    assert drawn.opening is not None and drawn.confidence > 0.5, drawn.confidence
    both = mouth_select(footage, drawn, FaceTrack(landmarks(OPENING, shift), confidence=0.9))
    assert [mouth.way for mouth in both] == [BY_LANDMARKS, BY_COLOUR]
    assert correlation(both[0]) > 0.99 > 0.5 > correlation(both[1])
    assert both[0].confidence > 2 * both[1].confidence


def test_the_only_way_is_believed():
    footage = Footage.of_frames(drawn_clip(OPENING))
    none = FaceTrack(None, reason="no face landmark model was given")
    drawn = mouth_of_drawing(footage)
    both = mouth_select(footage, drawn, none)
    assert both[0].confidence == drawn.confidence
    assert why(both).endswith("by landmarks: no face landmark model was given")
    face = FaceTrack(landmarks(OPENING, np.zeros(NUM_FRAMES)), confidence=1.0)
    assert mouth_select(footage, MouthTrack(None, reason="still"), face)[0].way == BY_LANDMARKS
    assert mouth_select(footage, MouthTrack(None, reason="still"), none)[0].opening is None


def test_what_is_explained():
    opening = np.linspace(0, 1, 50)
    pixels = np.outer(opening, [3.0, -2.0, 5.0]) + 7
    assert explained(pixels, opening) == pytest.approx(1)
    assert explained(pixels, np.cos(np.linspace(0, 2 * np.pi, 50))) < 0.05
    assert explained(np.ones((50, 3)), opening) == 0


def test_on_a_photo_without_landmarks_no_number_is_given():
    """What varies most in a photo may be a curtain: n/a, with the reason and what to do."""
    clip, _ = photo()
    footage = Footage.of_frames(clip)
    none = FaceTrack(None, reason="landmarks need pip install lipcast[lab]")
    found = MouthTrack(OPENING, confidence=0.9)
    both = mouth_select(footage, found, none)
    assert [mouth.opening for mouth in both] == [None, None]
    assert "on this photo landmarks are needed" in both[0].reason
    assert "lipcast[lab]" in both[0].reason
    drawing = Footage.of_frames(drawn_clip(OPENING))
    assert mouth_select(drawing, found, none)[0].opening is OPENING
