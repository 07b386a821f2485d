"""Metrics find what was put into a clip, and find nothing in the clean one."""

from __future__ import annotations

import numpy as np
import pytest

from drawn import FPS, drawn_clip, drawn_face, syllable_opening, write_voice
from lipcast.errors import InputError
from lipcast.lab.compare import EQUAL_DB, compare
from lipcast.lab.drift import Likeness, drift, flicker
from lipcast.lab.footage import THUMB_SIDE, Footage, survey
from lipcast.lab.metric import Metric
from lipcast.lab.motion import frozen_frames, jumps, motion, shifts_of
from lipcast.lab.mouth import MouthTrack, mouth_of_drawing
from lipcast.lab.pictures import ssim, thumbnail
from lipcast.lab.seams import seams
from lipcast.lab.sync import correlation, lip_sync, loudness

NUM_FRAMES = 120
OPENING = syllable_opening(NUM_FRAMES)


@pytest.fixture(scope="module")
def mouth(clean: list[np.ndarray]) -> MouthTrack:
    return mouth_of_drawing(footage(clean))


@pytest.fixture(scope="module")
def clean() -> list[np.ndarray]:
    return drawn_clip(OPENING)


def footage(frames: list[np.ndarray]) -> Footage:
    return Footage.of_frames(frames)


def values(metrics: list[Metric]) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in metrics}


def of_motion(frames: list[np.ndarray]) -> dict[str, float | None]:
    return values(motion(survey(footage(frames)), fps=FPS))


def of_drift(frames: list[np.ndarray], portrait: np.ndarray | None = None) -> dict:
    likeness = None
    if portrait is not None:
        colour = portrait.reshape(-1, 3).mean(axis=0).astype(np.float32)
        likeness = Likeness(thumbnail(portrait, THUMB_SIDE), colour)
    seen = survey(footage(frames))
    return values([*drift(seen, likeness, fps=FPS), *flicker(seen)])


@pytest.mark.parametrize(("skin", "least"), [("light", 0.95), ("dark", 0.75)])
def test_mouth_of_a_drawing_is_found(skin, least):
    track = mouth_of_drawing(footage(drawn_clip(OPENING, skin=skin)))
    assert track.opening is not None, track.reason
    assert correlation(track.opening, OPENING) > least
    top, bottom, left, right = track.box
    assert top < 85 < bottom and left < 64 < right
    assert bottom - top < 40 and right - left < 50


def test_mouth_is_not_invented():
    still = mouth_of_drawing(footage([drawn_face(0.3)] * 40))
    assert still.opening is None and "moves" in still.reason
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (128, 128, 3), dtype=np.uint8) for _ in range(40)]
    assert mouth_of_drawing(footage(noise)).opening is None
    assert mouth_of_drawing(footage(drawn_clip(OPENING[:6]))).opening is None


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_lip_sync_finds_the_offset(tmp_path, mouth, late):
    voice = write_voice(tmp_path / "voice.wav", OPENING, delay_frames=-late)
    loud = loudness(voice, fps=FPS, num_frames=NUM_FRAMES)
    assert mouth.opening is not None
    found = values(lip_sync(mouth.opening, loud, confidence=mouth.confidence))
    assert found["offset"] == late
    assert found["best correlation"] > 0.9
    assert (found["correlation"] > 0.9) == (late == 0)


def test_lip_sync_of_silence_is_not_a_number(clean):
    found = lip_sync(OPENING, np.zeros(NUM_FRAMES), confidence=1)
    assert [(metric.value, metric.reason) for metric in found] == [
        (None, "the sound is silent")
    ] * len(found)


def test_loudness_is_the_frame_s_own(tmp_path):
    opening = np.zeros(40)
    opening[20] = 1
    loud = loudness(write_voice(tmp_path / "v.wav", opening), fps=FPS, num_frames=40)
    assert loud.argmax() == 20


def test_frozen_frames_are_found(clean):
    frames = [*clean[:50], *[clean[50]] * 20, *clean[51:]]
    assert frozen_frames(survey(footage(frames))).tolist() == list(range(51, 70))
    assert of_motion(frames)["longest freeze"] == pytest.approx(19 / FPS)
    assert of_motion(clean)["frozen frames"] == 0
    assert of_motion(clean)["longest freeze"] == 0


def test_a_jump_is_found(clean):
    moved = [*clean[:70], *(np.roll(frame, 12, axis=1) for frame in clean[70:])]
    assert jumps(survey(footage(moved))) == [70]
    assert jumps(survey(footage(clean))) == []
    glitch = [*clean[:30], 255 - clean[30], *clean[31:]]
    assert jumps(survey(footage(glitch))) == [30, 31]


def test_head_speed_is_measured():
    faces = [drawn_face(0.2, shift=0.5 * i) for i in range(30)]
    shifts = shifts_of(survey(footage(faces)).thumbs)
    assert np.median(shifts[:, 1]) == pytest.approx(0.25, rel=0.2)  # thumbnails are half as large
    assert np.abs(np.median(shifts[:, 0])) < 0.02
    assert of_motion(faces)["head speed"] == pytest.approx(100 * 0.5 / 128 * FPS, rel=0.2)


def test_jerky_motion_has_more_jerk(clean):
    shaken = [np.roll(frame, 2 * (i % 2), axis=1) for i, frame in enumerate(clean)]
    assert of_motion(shaken)["head jerk"] > 5 * of_motion(clean)["head jerk"]


def test_dying_down_is_found(clean):
    dying = drawn_clip(OPENING * np.linspace(1, 0, NUM_FRAMES) ** 2)
    tail = [clean[0]] * 60
    assert of_motion([*clean, *tail])["dynamics kept"] < 0.2
    assert of_motion(dying)["dynamics kept"] < of_motion(clean)["dynamics kept"]
    assert of_motion(clean)["dynamics kept"] == pytest.approx(1, abs=0.35)


def test_joins_are_found(clean):
    steps = [
        np.clip(frame.astype(int) + 4 * (i // 12 % 2), 0, 255).astype(np.uint8)
        for i, frame in enumerate(clean)
    ]
    found = values(seams(survey(footage(steps)), {"block": 12, "clip": 48}))
    assert found["block ratio"] > 2 and found["block rank"] > 0.95
    smooth = values(seams(survey(footage(clean)), {"block": 12, "segment": 500}))
    assert smooth["block ratio"] == pytest.approx(1, abs=0.4)
    assert smooth["block rank"] == pytest.approx(0.5, abs=0.25)
    assert smooth["segment ratio"] is None


def test_colour_ramp_is_found(clean):
    ramp = [
        np.clip(frame + np.array([-10, 0, 0]) * i / FPS, 0, 255).astype(np.uint8)
        for i, frame in enumerate(clean)
    ]
    assert of_drift(ramp)["colour slope"] == pytest.approx(10, rel=0.15)
    assert of_drift(ramp)["colour drift"] == pytest.approx(38, rel=0.15)
    assert of_drift(clean)["colour drift"] < 1
    assert abs(of_drift(clean)["colour slope"]) < 0.5


def test_another_face_is_found(clean):
    other = drawn_clip(OPENING, skin="dark")
    changed = [*clean[:60], *other[60:]]
    portrait = drawn_face(0)
    kept, lost = of_drift(clean, portrait), of_drift(changed, portrait)
    assert kept["likeness to the portrait"] > lost["likeness to the portrait"] + 0.1
    assert lost["colour off the portrait"] > 10 * kept["colour off the portrait"]
    assert kept["likeness to the first second"] > 0.88 > lost["likeness to the first second"]
    assert of_drift(clean)["likeness to the portrait"] is None


def test_flicker_is_found(clean):
    rng = np.random.default_rng(2)
    trembling = [np.clip(frame + rng.normal(0, 3), 0, 255).astype(np.uint8) for frame in clean]
    assert of_drift(trembling)["brightness flicker"] == pytest.approx(3, rel=0.25)
    assert of_drift(clean)["brightness flicker"] < 0.5


def test_comparison(clean):
    same = compare(footage(clean), footage(clean))
    assert values(same.metrics) == {
        "PSNR": EQUAL_DB,
        "worst PSNR": EQUAL_DB,
        "SSIM": 1,
        "length": 0,
    }
    other = [frame.copy() for frame in clean]
    other[33] = np.clip(other[33].astype(int) + 5, 0, 255).astype(np.uint8)
    found = compare(footage(clean), footage(other[:-2]))
    assert int(np.argmin(found.psnr_curve)) == 33
    assert values(found.metrics)["worst PSNR"] == pytest.approx(20 * np.log10(255 / 5), abs=0.1)
    assert values(found.metrics)["length"] == -2
    with pytest.raises(InputError, match="one size"):
        compare(footage(clean), footage([frame[:64] for frame in clean]))


def test_ssim_is_the_published_one():
    """scikit-image 0.26 gives 0.956020 for these pictures (default arguments, data_range 255)."""
    rows, columns = np.mgrid[:40, :50]
    a = (128 + 60 * np.sin(rows / 3) * np.cos(columns / 4)).astype(np.float32)
    b = (a + 9 * np.sin(rows * columns / 7)).astype(np.float32)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) == pytest.approx(SSIM_OF_SKIMAGE, abs=2e-6)


SSIM_OF_SKIMAGE = 0.956020
