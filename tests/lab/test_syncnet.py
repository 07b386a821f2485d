"""SyncNet: its shapes and names, what it hears and sees, and that a planted shift is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drawn import FPS, drawn_clip, drawn_face, syllable_opening, write_voice
from lipcast.errors import CheckpointError
from lipcast.lab.evaluate import EvaluationInput, evaluate
from lipcast.lab.face import FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.mfcc import mfcc
from lipcast.lab.syncnet import (
    GROUP,
    MAX_LAG,
    agreement,
    cut_face,
    distances,
    face_squares,
    load_network,
    syncnet,
)
from lipcast.lab.syncnet_model import SyncNet

NUM_FRAMES = 64
OPENING = syllable_opening(NUM_FRAMES)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return SyncNet().state_dict()


@pytest.fixture(scope="module")
def published(state, tmp_path_factory) -> Path:
    """Random weights in the layout of the published file."""
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(state, path)
    return path


def face_of(num_frames: int = NUM_FRAMES) -> FaceTrack:
    """Landmarks whose box is the drawn face's."""
    points = np.full((num_frames, 468, 2), (64.0, 60.0))
    points[:, :2] = (26, 10), (102, 110)
    return FaceTrack(points, confidence=1.0)


class Eyes:
    """Stands in for SyncNet: five mouths' darkness, and how loud it is under five frames."""

    def lips(self, pictures: np.ndarray) -> np.ndarray:
        mouth = pictures[..., 104:136, 93:131]  # the mouth's place in the square of 224
        dark = (mouth < 100).all(axis=1).mean(axis=(-2, -1))
        return self._scaled(dark / 0.66)

    def sound(self, columns: np.ndarray) -> np.ndarray:
        loud = np.exp(columns[:, 0, 0] / 2).reshape(len(columns), 5, 4).mean(axis=-1)
        return self._scaled(loud / 9.5e3)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return np.column_stack([values, np.full(len(values), 2)]).astype(np.float32)


def values(metrics: list) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in metrics}


def test_names_and_shapes_are_those_of_the_published_file(state):
    assert len(state) == 102
    shapes = {
        "netcnnaud.0.weight": (64, 1, 3, 3), "netcnnaud.18.weight": (512, 256, 5, 4),
        "netcnnaud.19.running_var": (512,), "netfcaud.3.weight": (1024, 512),
        "netcnnlip.0.weight": (96, 3, 5, 7, 7), "netcnnlip.4.weight": (256, 96, 1, 5, 5),
        "netcnnlip.18.weight": (512, 256, 1, 6, 6), "netfclip.0.bias": (512,),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_a_published_file_is_read_and_embeds(published, state, tmp_path):
    old = tmp_path / "old.model"  # before PyTorch counted batches
    torch.save({n: t for n, t in state.items() if "num_batches" not in n}, old)
    rng = np.random.default_rng(0)
    heard = rng.normal(size=(3, 1, 13, 20)).astype(np.float32)
    seen = rng.uniform(0, 255, (1, 3, 5, 224, 224)).astype(np.float32)
    new, same = load_network(published), load_network(old)
    assert new.sound(heard).shape == (3, 1024) and new.lips(seen).shape == (1, 1024)
    assert np.array_equal(new.sound(heard), same.sound(heard))
    assert not np.allclose(new.sound(heard)[0], new.sound(heard)[1])


def test_another_file_is_refused(state, tmp_path):
    with pytest.raises(CheckpointError, match="found nothing at"):
        load_network(tmp_path / "none.model")
    path = tmp_path / "other.model"
    for changed in ({"a": torch.zeros(1)}, {**state, "netfclip.3.bias": torch.zeros(256)}):
        torch.save(changed, path)
        with pytest.raises(CheckpointError, match="got another model"):
            load_network(path)
    path.write_text("not a model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(path)


def test_cepstra_are_those_of_the_training():
    """First and last column as python_speech_features 0.6 gives them."""
    t = np.arange(1600) / 16000
    found = mfcc(np.rint(8000 * np.sin(2 * np.pi * (200 + 2000 * t) * t)))
    assert found.shape == (9, 13)
    first = [
        18.0253, 27.1248, 17.8432, 9.472, -0.011, -10.0895, -17.7015, -23.1789, -24.9414,
        -24.0181, -19.8011, -14.9288, -9.2337,
    ]  # fmt: skip
    last = [
        19.3072, 22.6086, 0.879, -18.9292, -29.3947, -26.007, -10.1259, 7.8979, 19.7126,
        19.4802, 10.0891, -3.3008, -12.7101,
    ]  # fmt: skip
    assert np.abs(found[[0, -1]] - [first, last]).max() < 1e-4
    assert mfcc(np.zeros(0)).shape == (0, 13) and np.isfinite(mfcc(np.zeros(500))).all()


@pytest.mark.parametrize("late", [-4, 0, 7])
def test_a_planted_shift_is_found(tmp_path, late):
    footage = Footage.of_frames(drawn_clip(OPENING, sway=np.zeros(NUM_FRAMES)))
    voice = write_voice(tmp_path / "voice.wav", OPENING, delay_frames=-late)
    found = values(syncnet(footage, face_of(), voice, Eyes()))
    assert found["offset"] == late
    other = write_voice(tmp_path / "other.wav", syllable_opening(NUM_FRAMES, seed=9))
    strange = values(syncnet(footage, face_of(), other, Eyes()))
    assert found["confidence"] > 1.2 * strange["confidence"]
    assert found["distance"] < 0.8 * strange["distance"]


def test_distances_are_over_all_lags():
    rng = np.random.default_rng(0)
    lips = rng.normal(size=(40, 8)).astype(np.float32)
    by_lag = distances(lips, np.roll(lips, -3, axis=0))
    assert by_lag.shape == (40, 2 * MAX_LAG + 1)
    found = agreement(by_lag)
    assert found.offset == 3 and found.distance < 0.5 and found.confidence > 2
    # At the greatest lag the first windows meet the zeros before the sound.
    assert by_lag[0, 0] == pytest.approx(np.linalg.norm(lips[0]), abs=1e-4)


def test_the_face_is_cut_out_as_published():
    frame = np.zeros((300, 300, 3), np.uint8)
    frame[..., 0] = 200  # red
    # A face 100 pixels wide; its square is 140, and begins 80 across and 50 down.
    square = np.array([150.0, 100.0, 50.0])
    frame[50:55, 80:85] = (0, 0, 250)
    seen = cut_face(frame, square)
    assert seen.shape == (3, 224, 224)
    assert seen[0, 1:6, 1:6].min() == 250 and seen[2, 20:, 20:].min() == 200  # BGR
    over = cut_face(frame, np.array([10.0, 100.0, 50.0]))
    assert (over[:, :, :80] == 110).all() and (over[2, :, 120:215] == 200).all()
    shaken = face_of(40).points.copy()
    shaken[20] += 30  # one frame loses the face
    assert np.ptp(face_squares(shaken), axis=0).max() == 0


def test_what_cannot_be_judged_says_why(tmp_path, published):
    voice = write_voice(tmp_path / "voice.wav", OPENING)
    clip = [drawn_face(0)] * 30

    def reason(footage: Footage, face: FaceTrack, sound: Path | None = voice) -> str:
        found = syncnet(footage, face, sound, Eyes())
        assert [metric.value for metric in found] == [None] * 3
        return found[0].reason

    assert "30 frames a second" in reason(Footage.of_frames(clip, fps=30), face_of(30))
    assert reason(Footage.of_frames(clip), FaceTrack(None, reason="no face")) == "no face"
    assert "no sound" in reason(Footage.of_frames(clip), face_of(30), None)
    assert "at least 24" in reason(Footage.of_frames(clip[:9]), face_of(9))


def test_the_evaluation_has_it(tmp_path, published, monkeypatch):
    from lipcast.media.video import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, width=128, height=128, sample_rate=16_000, num_channels=1) as writer:
        writer.write(
            np.stack(drawn_clip(OPENING[:26])), np.zeros((26 * 16_000 // FPS, 1), np.float32)
        )
    without = evaluate(EvaluationInput(path)).metrics
    assert {m.reason for m in without if m.group == GROUP} == {
        "no weights were given (--syncnet syncnet_v2.model)"
    }
    monkeypatch.setattr("lipcast.lab.face.can_find_faces", lambda: False)
    given = evaluate(EvaluationInput(path, syncnet=published)).metrics
    assert {m.reason for m in given if m.group == GROUP} == {
        "landmarks need pip install lipcast[lab]"
    }
