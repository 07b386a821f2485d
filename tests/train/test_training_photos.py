"""Portraits that are warped: drawn people stand in for photographs, which the repository has none of."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipcast.errors import InputError
from lipcast.lab.face import face_track
from lipcast.lab.footage import Footage
from lipcast_train.data import photos
from lipcast_train.data.drawing.person import Variety, person
from lipcast_train.data.drawing.portrait import draw
from lipcast_train.data.movement import at_rest
from lipcast_train.data.photos import PhotoClips
from lipcast_train.data.voices import read_wave
from lipcast_train.data.words import Mood
from sounds import EXAMPLES

PLAIN = Variety(photo_share=0, beard_share=0, glasses_share=0)


def _portrait(path: Path, index: int) -> Path:
    Image.fromarray(draw(person(11, index, PLAIN), at_rest(), side=256)[0]).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portraits")
    _portrait(path / "a.png", 0)
    return path


@pytest.mark.slow
def test_the_mouth_of_a_portrait_follows_the_voice(folder: Path) -> None:
    source = PhotoClips(folder, num_clips=1, side=192)
    wave = read_wave(EXAMPLES / "speech_d_female.wav")[: 48 * 640]
    clip = source.clip_of(0, wave, Mood("neutral", "calm", "calm"), seed=1)
    assert clip.mouth is not None
    seen = face_track(Footage.of_frames(list(clip.frames_THWC[::2])), None).opening
    assert seen is not None
    assert np.corrcoef(seen, clip.mouth.opening_T[::2])[0, 1] > 0.8
    still = clip.frames_THWC[:, :8, :8].astype(int)
    assert abs(still - clip.portrait_HWC[:8, :8]).max() < 12
    left, top, width, height = clip.face_boxes["mouth"]
    outside = abs(clip.frames_THWC.astype(int) - clip.portrait_HWC).max(axis=(0, 3))
    inside = outside[top : top + height, left : left + width]
    assert inside.mean() > 4 * outside.mean()


def test_clips_of_portraits_are_the_same_each_time(folder: Path) -> None:
    source = PhotoClips(folder, num_clips=2, num_blocks=1, side=64)
    first, again, other = source.clip(0), source.clip(0), source.clip(1)
    assert len(source) == 2
    assert (first.frames_THWC == again.frames_THWC).all()
    assert (first.frames_THWC != other.frames_THWC).any()
    assert (first.portrait_HWC == other.portrait_HWC).all()
    assert first.frames_THWC.shape == (12, 64, 64, 3)
    with pytest.raises(IndexError, match="from 0 to 1"):
        source.clip(2)


def test_pictures_without_a_face_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _portrait(tmp_path / "good.png", 3)
    Image.new("RGB", (128, 128), "grey").save(tmp_path / "empty.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        source = PhotoClips(tmp_path, num_clips=1, num_blocks=1, side=64)
    assert {path.name for path in source.skipped} == {"empty.png", "broken.jpg"}
    assert "the portrait is skipped" in caplog.text
    (tmp_path / "good.png").unlink()
    with pytest.raises(InputError, match="2 were skipped"):
        PhotoClips(tmp_path, num_clips=1, side=64)


def test_without_the_face_detector_portraits_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "can_find_faces", lambda: False)
    with pytest.raises(InputError, match=r"pip install lipcast\[lab\]"):
        PhotoClips(folder, num_clips=1)
