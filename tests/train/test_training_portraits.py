"""Drawn portraits: the same for a seed, sharp without stairs, and moving as they are told."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from lipcast_train.data.clips import MouthTrack
from lipcast_train.data.drawing import person as people
from lipcast_train.data.drawing.person import Person, Variety, person
from lipcast_train.data.drawing.portrait import draw, face_boxes
from lipcast_train.data.movement import Movement, at_rest

PLAIN = Variety(photo_share=0, beard_share=0, glasses_share=0)


def moving(num_frames: int, **curves: np.ndarray | float) -> Movement:
    """At rest but for the curves that are named."""
    values = at_rest(num_frames).curves()
    for name, curve in curves.items():
        values[f"{name}_T"] = np.broadcast_to(np.float32(curve), num_frames).astype(np.float32)
    names = ("opening_T", "width_T", "rounding_T", "teeth_T", "tongue_T")
    return Movement(mouth=MouthTrack(*(values.pop(name) for name in names)), **values)


def mouth_inside(frames: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """How many pixels of the box show the dark inside of a mouth; [T]."""
    left, top, width, height = box
    seen = frames[:, top : top + height, left : left + width].astype(float)
    near = np.linalg.norm(seen - (76, 18, 23), axis=-1) < 48
    return (near & (seen[..., 0] - seen[..., 1] > 38)).sum(axis=(1, 2))


def test_a_seed_and_an_index_give_one_picture() -> None:
    first = draw(person(1, 7), at_rest(), side=64)
    assert (first == draw(person(1, 7), at_rest(), side=64)).all()
    for other in (person(1, 8), person(2, 7)):
        assert abs(first.astype(int) - draw(other, at_rest(), side=64)).mean() > 3


def test_people_differ_in_every_way_that_can_be_chosen() -> None:
    many = [person(0, index) for index in range(300)]
    for name, choices in (
        ("hair", people.Hair), ("clothes", people.Clothes), ("glasses", people.Glasses),
        ("beard", people.Beard), ("scene", people.Scene),
    ):  # fmt: skip
        assert {getattr(one, name) for one in many} == set(get_args(choices))


@pytest.mark.parametrize("name", ["hair", "clothes", "glasses", "beard", "scene"])
def test_every_choice_is_seen(name: str) -> None:
    someone = replace(person(3, 1, PLAIN), hair="crew", clothes="shirt", scene="plain")
    kinds = {"hair": people.Hair, "clothes": people.Clothes, "glasses": people.Glasses,
             "beard": people.Beard, "scene": people.Scene}  # fmt: skip
    pictures = [
        draw(replace(someone, **{name: choice}), at_rest(), side=64)[0].astype(int)
        for choice in get_args(kinds[name])
    ]
    pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min((abs(a - b) > 8).sum() for a, b in pairs) > 20


@pytest.mark.parametrize("index", [0, 4])
def test_edges_are_smooth_at_every_size(index: int) -> None:
    """A picture equals the mean over squares of one four times as large, which stairs would not."""
    someone = person(5, index, PLAIN)
    small = draw(someone, at_rest(), side=64)[0].astype(float)
    large = draw(someone, at_rest(), side=256)[0].astype(float)
    mean = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    stairs = large[2::4, 2::4]
    assert np.mean((small - mean) ** 2) < 0.5 * np.mean((stairs - mean) ** 2)
    assert abs(small - mean).mean() < 2


def test_a_frame_does_not_depend_on_those_drawn_with_it() -> None:
    someone = person(5, 3, Variety(photo_share=1))
    openings = np.linspace(0, 1, 6)
    together = draw(someone, moving(6, opening=openings, yaw=openings - 0.5), side=192)
    alone = draw(someone, moving(1, opening=openings[0], yaw=-0.5), side=192)
    assert abs(together[0].astype(int) - alone[0]).max() <= 1


@pytest.mark.parametrize("index", range(4))
def test_the_mouth_opens_as_it_is_told(index: int) -> None:
    someone = person(11, index, PLAIN)
    rng = np.random.default_rng(index)
    opening = np.convolve(rng.random(40) ** 2, np.hanning(7) / 3.5, mode="valid")
    movement = moving(len(opening), opening=opening, teeth=0.5 * opening, yaw=0.3 * opening)
    box = face_boxes(someone, movement, side=192)["mouth"]
    counts = mouth_inside(draw(someone, movement, side=192), box)
    assert np.corrcoef(counts, opening)[0, 1] > 0.95


def test_lids_close_and_brows_rise() -> None:
    someone: Person = person(11, 0, PLAIN)
    movement = moving(3, lids=np.array([1, 0, 1]), brows=np.array([0, 0, 1]))
    left, top, width, height = face_boxes(someone, movement, side=192)["eyes"]
    eyes = draw(someone, movement, side=192)[:, top : top + height, left : left + width].astype(int)
    whites = (eyes.min(axis=-1) > 200).sum(axis=(1, 2))
    assert whites[1] < 0.1 * whites[0]
    rows = np.arange(height)[:, None]
    changed = abs(eyes[2] - eyes[0]).max(axis=-1) * (rows < height / 2)
    darker = (eyes[2].sum(axis=-1) < eyes[0].sum(axis=-1)) & (changed > 60)
    lighter = (eyes[2].sum(axis=-1) > eyes[0].sum(axis=-1)) & (changed > 60)
    assert (rows * darker).sum() / darker.sum() < (rows * lighter).sum() / lighter.sum() - 1
