"""Draw a person in any movement.

Input: a `Person` and a `Movement`. Output: pictures, or where mouth and eyes are in them. Frames are drawn in
batches that fit the processor's cache, or all at once on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast_train.data.clips import MouthTrack
from lipcast_train.data.drawing import camera, clothes, eyes, face, hair, mouth, scenery
from lipcast_train.data.drawing.canvas import Canvas
from lipcast_train.data.drawing.head import Head
from lipcast_train.data.drawing.person import Person
from lipcast_train.data.movement import Movement

Box = tuple[int, int, int, int]
_CPU_PIXELS = 2**18
_GPU_PIXELS = 2**23


def draw(
    person: Person, movement: Movement, *, side: int = 256, device: torch.device | str = "cpu"
) -> NDArray[np.uint8]:
    """Return a frame for every moment of the movement, [T, side, side, 3]."""
    frames = [_to_bytes(rgb) for rgb in draw_batches(person, movement, side=side, device=device)]
    return np.concatenate(frames)


@torch.no_grad()
def draw_batches(
    person: Person, movement: Movement, *, side: int = 256, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield the frames as float tensors [n, 3, side, side], 0 to 1, on the device."""
    still = Canvas.blank(1, side, device=device)
    scenery.draw_background(still, Head.of(person, _part(movement, 0, 1), device=device))
    pixels = _CPU_PIXELS if torch.device(device).type == "cpu" else _GPU_PIXELS
    count = max(1, pixels // side**2)
    for first in range(0, len(movement), count):
        head = Head.of(person, _part(movement, first, first + count), device=device)
        canvas = Canvas.blank(len(head), side, device=device)
        canvas.rgb_N3HW.copy_(still.rgb_N3HW)
        _draw_person(canvas, head)
        yield camera.photographed(canvas.rgb_N3HW, head, first_frame=first)


def face_boxes(person: Person, movement: Movement, *, side: int = 256) -> dict[str, Box]:
    """Return where the mouth and the eyes are in all frames: x, y, width, height in pixels."""
    head, proportions = Head.of(person, movement), person.face
    around = {
        "mouth": (-0.50, proportions.mouth_y - 0.20, 0.50, proportions.mouth_y + 0.52),
        "eyes": (-0.72, proportions.brow_y - 0.18, 0.72, proportions.eye_y + 0.20),
    }
    return {name: _pixels(head.place(*corners), side) for name, corners in around.items()}


def _draw_person(canvas: Canvas, head: Head) -> None:
    hair.draw_hair_behind(canvas, head)
    face.draw_neck(canvas, head)
    clothes.draw_clothes(canvas, head)
    face.draw_ears(canvas, head)
    face.draw_face(canvas, head)
    hair.draw_beard(canvas, head)
    face.draw_nose(canvas, head)
    mouth.draw_mouth(canvas, head)
    eyes.draw_eyes(canvas, head)
    hair.draw_hair(canvas, head)
    eyes.draw_brows(canvas, head)
    eyes.draw_glasses(canvas, head)


def _part(movement: Movement, first: int, end: int) -> Movement:
    own = {f.name: getattr(movement, f.name)[first:end] for f in fields(movement)[1:]}
    mouth_of = movement.mouth
    track = {f.name: getattr(mouth_of, f.name)[first:end] for f in fields(mouth_of)}
    return replace(movement, mouth=MouthTrack(**track), **own)


def _pixels(place: tuple[float, float, float, float], side: int) -> Box:
    left, top, right, bottom = (min(max(0, round((c + 1) * side / 2)), side) for c in place)
    return left, top, right - left, bottom - top


def _to_bytes(rgb_N3HW: Tensor) -> NDArray[np.uint8]:
    pixels = rgb_N3HW.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy())
