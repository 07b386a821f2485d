"""A face is followed by a landmark model, here one that knows a red square."""

from __future__ import annotations

import numpy as np
import pytest

from lipcast.errors import CheckpointError
from lipcast.lab.face import expression, face_track, load_model, track
from lipcast.lab.footage import Footage

LIPS, EYES = (13, 14), (33, 263)
NUM_POINTS = 468


def square_frame(x: int, gap: int) -> np.ndarray:
    """A red face of 60 pixels at `x`, 70, with a black mouth `gap` high."""
    frame = np.full((160, 240, 3), 40, np.uint8)
    frame[40:100, x - 30 : x + 30] = (255, 0, 0)
    frame[80 : 80 + gap, x - 10 : x + 10] = 0
    return frame


def red_square_model(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """Points at the corners of what is red; the lips where black begins and ends in it."""
    red = picture[..., 0] - picture[..., 1] > 0.5
    points = np.zeros((NUM_POINTS, 2))
    if not 0.1 < red.mean() < 0.8 or red[0].any() or red[:, 0].any():
        return points, 0.01
    rows, columns = np.nonzero(red)
    points[:] = columns.mean(), rows.mean()
    points[EYES[0]], points[EYES[1]] = (columns.min(), rows.min()), (columns.max(), rows.max())
    middle = ~red[rows.min() : rows.max(), round(columns.mean())]
    inside = np.nonzero(middle)[0] + rows.min()
    points[LIPS[0], 1], points[LIPS[1], 1] = (inside.min(), inside.max()) if len(inside) else (0, 0)
    return points, 0.99


def test_a_moving_face_is_followed():
    gaps = [2, 8, 14, 8, 2, 11] * 4
    clip = [square_frame(60 + 4 * i, gap) for i, gap in enumerate(gaps)]
    found = track(Footage.of_frames(clip), red_square_model)
    assert found.points is not None, found.reason
    centres = found.points[:, list(EYES)].mean(axis=1)
    assert np.abs(centres[:, 0] - [60 + 4 * i for i in range(len(gaps))]).max() < 2
    assert np.abs(centres[:, 1] - 70).max() < 2
    assert np.corrcoef(found.opening, gaps)[0, 1] > 0.98
    spread = {metric.name: metric.value for metric in expression(found)}["mouth opening spread"]
    assert spread == pytest.approx(100 * np.std(gaps) / np.hypot(60, 60), rel=0.1)


def test_no_face_is_said(monkeypatch):
    empty = track(Footage.of_frames([np.zeros((90, 90, 3), np.uint8)] * 3), red_square_model)
    assert empty.opening is None and "0% of the frames" in empty.reason
    monkeypatch.setattr("lipcast.lab.face.can_find_faces", lambda: False)
    without = face_track(Footage.of_frames([]), None)
    assert "lipcast[lab]" in without.reason
    assert expression(without)[0].value is None


def test_a_file_that_is_no_model(tmp_path):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(CheckpointError, match="nothing at"):
        load_model(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("not a model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "text.tflite")
