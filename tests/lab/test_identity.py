"""Identity: a changed face is found, the same one is not; what stands in for the network sees colours."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from drawn import drawn_clip, drawn_face, syllable_opening
from lipcast.errors import CheckpointError
from lipcast.lab import identity as module
from lipcast.lab.face import FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.identity import GROUP, Recogniser, aligned, identity, load_recogniser

OPENING = syllable_opening(40)
PLACES = {33: (44, 48), 133: (56, 48), 263: (84, 48), 362: (72, 48), 4: (64, 66), 61: (50, 85),
          291: (78, 85)}  # fmt: skip


def face_of(num_frames: int) -> FaceTrack:
    points = np.full((num_frames, 468, 2), 64.0)
    for index, place in PLACES.items():
        points[:, index] = place
    return FaceTrack(points, confidence=1.0)


def coarse(face: np.ndarray) -> np.ndarray:
    """The face in 4 x 4 colours."""
    side = face.shape[0] // 4
    return face[: 4 * side, : 4 * side].reshape(4, side, 4, side, 3).mean(axis=(1, 3)).ravel()


NETWORK = Recogniser(112, coarse)
PORTRAIT = drawn_face(0), face_of(1)


def values(metrics: list) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in metrics}


def test_the_same_face_stays_and_another_is_found():
    clean = drawn_clip(OPENING)
    same, curve = identity(Footage.of_frames(clean), face_of(40), PORTRAIT, NETWORK)
    changed = [*clean[:25], *drawn_clip(OPENING, skin="dark")[25:]]
    lost, other = identity(Footage.of_frames(changed), face_of(40), PORTRAIT, NETWORK)
    assert curve is not None and other is not None and len(curve) == len(other) == 40
    assert values(same)["least similarity"] > 0.97
    assert abs(values(same)["similarity slope"]) < 0.02
    assert values(lost)["least similarity"] < 0.5 and values(lost)["similarity slope"] < -0.2
    assert int(np.diff(other).argmin()) + 1 == 25
    note = next(metric.note for metric in lost if metric.name == "least similarity")
    assert int(note.removeprefix("at frame ")) >= 25


def test_a_face_is_aligned_whatever_its_place_size_and_turn():
    rng = np.random.default_rng(0)
    upright = aligned(drawn_face(0.3), face_of(1).points[0], 112)
    # The features lie where such networks expect them: the eyes are blue at (38, 52) and (74, 52).
    for x in (38, 74):
        iris = upright[50:54, x - 2 : x + 3].mean(axis=(0, 1))
        assert iris[2] > iris[0] + 10
    big = np.kron(drawn_face(0.3), np.ones((2, 2, 1), np.uint8))
    turned = np.rot90(big).copy()  # (x, y) goes to (y, 255 - x)
    points = 2 * face_of(1).points[0] + 0.5
    points = np.column_stack([points[:, 1], 255 - points[:, 0]])
    error = np.abs(aligned(turned, points, 112) - upright).mean()
    assert error < 4 < np.abs(rng.permutation(upright) - upright).mean()


@pytest.mark.parametrize(
    ("portrait", "face", "words"),
    [
        (None, face_of(40), "--reference"),
        (PORTRAIT, FaceTrack(None, reason="no face landmark model"), "no face landmark model"),
        ((PORTRAIT[0], FaceTrack(None, reason="a face was seen in 0%")), face_of(40), "in the portrait a"),
    ],
)  # fmt: skip
def test_without_a_face_there_is_no_number(portrait, face, words):
    found, curve = identity(Footage.of_frames(drawn_clip(OPENING)), face, portrait, NETWORK)
    assert curve is None and {metric.group for metric in found} == {GROUP}
    assert all(metric.value is None and words in metric.reason for metric in found)


class Interpreter:
    """Speaks as ai_edge_litert's does, for a network that averages colours."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._given = np.zeros(0)

    def get_input_details(self):
        return [{"index": 5, "shape": np.array(self._shape)}]

    def get_output_details(self):
        return [{"index": 9}]

    def set_tensor(self, index, value):
        assert index == 5 and value.shape == self._shape and value.dtype == np.float32
        self._given = value

    def invoke(self):
        self._answer = self._given.mean(axis=(1, 2))

    def get_tensor(self, index):
        return SimpleNamespace(nine=self._answer).nine if index == 9 else None


def test_a_network_of_a_file_is_asked_as_it_wants(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_tflite", lambda path, flag: Interpreter((1, 96, 96, 3)))
    network = load_recogniser(tmp_path / "net.tflite")
    assert network.side == 96
    red = np.zeros((128, 128, 3), np.uint8)
    red[..., 0] = 255
    vector = network.of(red, face_of(1).points[0])
    assert np.allclose(vector, np.array([1, -1, -1]) / np.sqrt(3), atol=0.01)
    monkeypatch.setattr(module, "open_tflite", lambda path, flag: Interpreter((1, 3, 96, 96)))
    with pytest.raises(CheckpointError, match="mobile_face_net"):
        load_recogniser(tmp_path / "net.tflite")


def test_a_file_that_is_not_there(tmp_path):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(
        CheckpointError, match=r"--identity: expected a \.tflite file, found nothing"
    ):
        load_recogniser(tmp_path / "none.tflite")
