"""Eyes, brows and glasses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import Canvas, box, ellipse, fade, inside, segment
from lipcast_train.data.drawing.head import Head

_DEPTH = 0.12
_LASH = (0.10, 0.07, 0.07)


@dataclass(frozen=True, slots=True)
class _Eye:
    """One eye's pixels: `out` grows away from the nose, `across` to the right of the picture."""

    across: Tensor
    out: Tensor
    y: Tensor
    along: Tensor
    """-1 at the inner corner, 1 at the outer one."""
    upper: Tensor
    lower: Tensor


def draw_eyes(canvas: Canvas, head: Head) -> None:
    """Draw both eyes."""
    face = head.person.face
    for side in (-1.0, 1.0):
        middle = side * face.eye_spread
        area = head.window(
            canvas, middle - 0.30, face.eye_y - 0.28, middle + 0.30, face.eye_y + 0.24
        )
        eye = _eye(area, head, side)
        _draw_ball(area, head, eye)
        _draw_lids(area, head, eye)


def _eye(area: Canvas, head: Head, side: float) -> _Eye:
    face, pose = head.person.face, head.pose
    x, y = head.at(area, _DEPTH)
    across = x - side * face.eye_spread
    out = across * side
    y = y - face.eye_y + face.eye_slant * out
    along = out / face.eye_width
    profile = (1 - along.square()).clamp_min(0)
    squint = 0.28 * pose["corners"].clamp_min(0)
    top = face.eye_height * (1.15 * pose["lids"] - 0.50 * (1 - pose["lids"]).clamp(0, 1))
    bottom = face.eye_height * (0.80 - squint)
    # The highest point of the upper lid lies inwards, the lowest of the lower one outwards.
    upper = -top * profile.pow(0.58) * (1 - 0.10 * along)
    lower = bottom * profile.pow(0.8) * (1 + 0.15 * along)
    return _Eye(across, out, y, along, torch.minimum(upper, lower), lower)


def _draw_ball(area: Canvas, head: Head, eye: _Eye) -> None:
    person, face, pose = head.person, head.person.face, head.pose
    white = inside(torch.maximum(eye.upper - eye.y, eye.y - eye.lower)) * (eye.along.abs() < 1)
    area.paint(head.colour((0.97, 0.96, 0.95)), white)
    area.paint(head.colour((0.80, 0.66, 0.62)), white * fade(eye.along, -0.72, -1.0) * 0.8)
    radius = 0.128 * (0.6 + 0.4 * face.eye_height / 0.115)
    ix = eye.across - 0.07 * pose["gaze_x"]
    iy = eye.y + 0.012 - 0.045 * pose["gaze_y"]
    iris = ellipse(ix, iy, radius, radius)
    mask = white * inside(iris)
    area.paint(head.colour(person.iris), mask)
    area.paint(
        head.colour(person.iris, 1.75), mask * fade(iris, 0.05, -0.5) * fade(iy, -0.05, 0.09) * 0.75
    )
    area.paint(head.colour(person.iris, 0.32), mask * fade(iris, -0.28, 0.0) * 0.85)
    area.paint(
        head.colour((0.03, 0.02, 0.03)),
        white * inside(ellipse(ix, iy, radius * 0.46, radius * 0.46)),
    )
    area.paint(
        head.colour((0.28, 0.20, 0.22)), white * fade(eye.y - eye.upper, 0.085, -0.01) * 0.50
    )
    _draw_catch_lights(area, head, ix, iy, radius, white)


def _draw_catch_lights(
    area: Canvas, head: Head, x: Tensor, y: Tensor, radius: float, white: Tensor
) -> None:
    towards = 1.0 if head.person.finish.light[0] > 0 else -1.0
    bright = head.colour((1.0, 1.0, 1.0))
    main = ellipse(x - towards * 0.36 * radius, y + 0.36 * radius, 0.27 * radius, 0.29 * radius)
    area.paint(bright, white * inside(main) * 0.97)
    small = ellipse(x + towards * 0.36 * radius, y - 0.42 * radius, 0.13 * radius, 0.13 * radius)
    area.paint(bright, white * inside(small) * 0.65)


def _draw_lids(area: Canvas, head: Head, eye: _Eye) -> None:
    person, face = head.person, head.person.face
    near = (eye.along.abs() < 1.04).float()
    thick = 0.013 + 0.013 * face.lashes + 0.012 * (1 + eye.along.clamp(-1, 1)) * (0.4 + face.lashes)
    line = inside((eye.y - eye.upper + 0.4 * thick).abs() - thick) * near
    area.paint(head.colour(_LASH), line * (0.72 + 0.25 * face.lashes))
    below = inside((eye.y - eye.lower).abs() - 0.007) * near * fade(eye.along, -0.6, 0.6)
    area.paint(head.shadow(person.skin, 1.3), below * 0.55)
    crease = inside((eye.y - eye.upper + 0.062).abs() - 0.010) * fade(eye.along.abs(), 0.98, 0.7)
    area.paint(head.shadow(person.skin, 1.1), crease * 0.55 * fade(head.pose["lids"], 0.2, 0.7))
    if face.lashes > 0.5:
        start = (face.eye_width * 0.90, -0.015)
        flick = segment(eye.out, eye.y, start, (face.eye_width * 1.22, -0.075)) - 0.013
        area.paint(head.colour(_LASH), inside(flick) * 0.9)
        lid = (
            fade(eye.y - eye.upper, -0.09, -0.02)
            * (eye.y < eye.upper)
            * fade(eye.along.abs(), 1.05, 0.7)
        )
        area.paint(head.shadow(person.skin, 1.2), lid * 0.35 * face.lashes)


def draw_brows(canvas: Canvas, head: Head) -> None:
    """Draw both brows, with hairs that lie along them."""
    face, pose = head.person.face, head.pose
    dark = tuple(0.72 * c for c in head.person.hair_colour)
    if head.person.hair == "scarf" or sum(dark) > 1.5:
        dark = (0.26, 0.18, 0.14)
    for side in (-1.0, 1.0):
        middle = side * face.eye_spread
        area = head.window(
            canvas, middle - 0.40, face.brow_y - 0.40, middle + 0.40, face.brow_y + 0.30
        )
        x, y = head.at(area, _DEPTH)
        out = x * side - face.eye_spread
        along = (out - 0.02) / 0.30
        inward = (0.35 - along).clamp(-0.6, 1.35)
        height = face.brow_y - 0.15 * pose["brows"] - 0.115 * pose["brow_tilt"] * inward
        height = height - 0.065 * (1 - (along - 0.15).square()).clamp(-1, 1) + 0.02 * along
        weight = (
            face.brow_weight
            * (1.05 - 0.55 * fade(along, -0.1, 1.0))
            * fade(along.abs(), 1.04, 0.78)
        )
        hairs = 0.85 + 0.15 * torch.sin(70 * (out + 0.6 * (y - height)) + 3 * torch.sin(9 * out))
        mask = inside((y - height).abs() - weight) * (along.abs() < 1.04)
        area.paint(head.colour((dark[0], dark[1], dark[2])), mask * hairs * 0.93)


def draw_glasses(canvas: Canvas, head: Head) -> None:
    """Draw the glasses that the person wears."""
    if head.person.glasses == "none":
        return
    face = head.person.face
    area = head.window(canvas, -1.1, -0.45, 1.1, 0.5)
    x, y = head.at(area, 0.15)
    y = y - face.eye_y - 0.02
    out = x.abs() - face.eye_spread - 0.015
    rim = _rim(head, out, y)
    thick = {"rimless": 0.009, "round": 0.022}.get(head.person.glasses, 0.034)
    ink = head.colour(head.person.frame_colour)
    lens = inside(rim)
    area.paint(head.colour((0.92, 0.96, 1.0)), lens * 0.10)
    glare = inside(box((x - y * 0.7).remainder(0.9) - 0.30, y * 0, 0.055, 1.0, 0.0))
    area.paint(head.colour((1.0, 1.0, 1.0)), lens * glare * fade(y, 0.12, -0.16) * 0.26)
    area.paint(head.shadow(head.person.skin, 0.9), fade((rim - 0.02).abs(), 0.06, 0.0) * 0.25)
    bridge = inside((y + 0.05 + 0.25 * (0.13 - x.abs())).abs() - thick * 0.8) * (out < -0.24)
    temple = inside((y + 0.06).abs() - thick) * (out > 0.27) * (x.abs() < 1.0)
    area.paint(ink, bridge * (rim > 0) * 0.97)
    area.paint(ink, temple)
    area.paint(ink, inside(rim.abs() - thick))
    shine = inside((rim + 0.3 * thick).abs() - 0.25 * thick) * fade(y, -0.05, -0.2)
    area.paint(head.colour((1.0, 1.0, 1.0)), shine * 0.28)


def _rim(head: Head, out: Tensor, y: Tensor) -> Tensor:
    kind = head.person.glasses
    if kind == "round":
        return (out.square() + y.square()).sqrt() - 0.285
    if kind == "cat":
        return box(out, y + 0.22 * out.clamp_min(0), 0.30, 0.20, 0.15)
    return box(out, y, 0.30, 0.205, 0.09 if kind == "square" else 0.14)
