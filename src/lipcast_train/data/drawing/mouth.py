"""Lips, teeth, tongue and what is dark behind them.

The inner edges of both lips are curves over the width; the opening is the distance between them, so that the
area of the inside follows the drive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import Canvas, blob, fade, inside
from lipcast_train.data.drawing.head import Head

MAX_OPENING = 0.50
"""Distance of the inner lips at an opening of 1."""
INSIDE = (0.30, 0.07, 0.09)
_TEETH = (0.96, 0.94, 0.90)
_TONGUE = (0.80, 0.38, 0.40)
_DEPTH = 0.13


@dataclass(frozen=True, slots=True)
class _Lips:
    """Heights of the edges, [N, H, W], and the place along the width, -1 to 1 between the corners."""

    along: Tensor
    profile: Tensor
    top: Tensor
    upper: Tensor
    seam: Tensor
    lower: Tensor
    bottom: Tensor


def draw_mouth(canvas: Canvas, head: Head) -> None:
    """Draw the mouth."""
    face = head.person.face
    area = head.window(canvas, -0.62, face.mouth_y - 0.3, 0.62, face.mouth_y + 0.62)
    x, y = head.at(area, _DEPTH)
    y = y - face.mouth_y
    lips = _lips(head, x)
    _draw_lips(area, head, lips, y)
    hole = inside(torch.maximum(lips.upper - y, y - lips.lower)) * (lips.along.abs() < 1)
    area.paint(head.colour(INSIDE), hole)
    _draw_tongue(area, head, lips, x, y, hole)
    _draw_teeth(area, head, lips, x, y, hole)
    _draw_seam(area, head, lips, y)


def _lips(head: Head, x: Tensor) -> _Lips:
    face, pose = head.person.face, head.pose
    spread = 1 + 0.34 * (pose["width"] - 0.5) - 0.34 * pose["rounding"]
    half = face.mouth_width * (spread + 0.16 * pose["corners"].clamp_min(0))
    along = x / half
    profile = (1 - along.square()).clamp_min(0)
    arch = profile.sqrt()
    corners = pose["corners"] + face.smile
    seam = -0.20 * corners * (along.square().clamp_max(1.3) - 0.35)
    seam = seam + 0.010 * torch.exp(-(along / 0.25).square())
    opening = MAX_OPENING * pose["opening"] * (1 - 0.25 * pose["rounding"])
    upper, lower = seam - 0.27 * opening * arch, seam + 0.73 * opening * arch
    full = face.lip_weight * (1 + 0.30 * pose["rounding"]) * (1 - 0.18 * pose["opening"])
    full = full * (1 - 0.12 * pose["corners"].clamp_min(0))
    bow = (
        1
        - 0.26 * torch.exp(-(along / 0.17).square())
        + 0.10 * torch.exp(-((along.abs() - 0.3) / 0.2).square())
    )
    top = upper - 0.108 * full * bow * profile.pow(0.8)
    bottom = lower + 0.150 * full * profile.pow(0.75)
    return _Lips(along, profile, top, upper, seam, lower, bottom)


def _draw_lips(area: Canvas, head: Head, lips: _Lips, y: Tensor) -> None:
    person = head.person
    within = lips.along.abs() < 1
    whole = inside(torch.maximum(lips.top - y, y - lips.bottom)) * within
    area.paint(head.colour(person.lips), whole)
    area.paint(head.colour(person.lips, 0.80), whole * fade(y - lips.upper, 0.02, -0.02) * 0.75)
    area.paint(head.colour(person.lips, 0.78), whole * fade(y - lips.bottom, -0.06, 0.0) * 0.5)
    thickness = lips.bottom - lips.lower
    shine = blob(lips.along, (y - lips.lower - 0.42 * thickness) / 0.06, 0.42, 0.42)
    pale = (*(min(1.0, 0.55 * c + 0.45) for c in person.lips),)
    area.paint(head.colour((pale[0], pale[1], pale[2])), whole * shine * (y > lips.lower) * 0.55)
    corners = blob(lips.along.abs() - 1.02, (y - lips.seam) / 0.05, 0.09, 0.9)
    area.paint(head.shadow(person.skin, 1.2), corners * 0.6)
    folds = head.pose["corners"].clamp_min(0)
    line = blob(lips.along.abs() - 1.32, (y + 0.16) / 0.2, 0.05, 0.8)
    area.paint(head.shadow(person.skin, 0.9), line * 0.5 * folds)


def _draw_tongue(area: Canvas, head: Head, lips: _Lips, x: Tensor, y: Tensor, hole: Tensor) -> None:
    pose, width = head.pose, head.person.face.mouth_width
    height = 0.05 + 0.15 * pose["opening"] + 0.10 * pose["tongue"]
    centre = lips.lower + 0.03 - 0.10 * pose["tongue"]
    shape = (x / (0.62 * width)).square() + ((y - centre) / height).square() - 1
    mask = hole * inside(shape) * fade(pose["opening"], 0.02, 0.15)
    area.paint(head.colour(_TONGUE), mask * 0.92)
    area.paint(head.colour(_TONGUE, 1.18), mask * fade(shape, -0.3, -0.9) * 0.5)
    area.paint(head.colour(_TONGUE, 0.7), mask * blob(x, y * 0, 0.02, 1.0) * 0.45)


def _draw_teeth(area: Canvas, head: Head, lips: _Lips, x: Tensor, y: Tensor, hole: Tensor) -> None:
    pose = head.pose
    shown = pose["teeth"]
    bite = lips.upper + (0.035 + 0.085 * shown) * (0.55 + 0.45 * lips.profile)
    mask = hole * inside(y - bite) * fade(lips.along.abs(), 0.96, 0.82) * fade(shown, 0.0, 0.2)
    area.paint(head.colour(_TEETH), mask)
    gaps = ((x / 0.088).sub(0.5).remainder(1) - 0.5).abs()
    area.paint(head.colour((0.62, 0.52, 0.48)), mask * fade(gaps, 0.09, 0.0) * 0.42)
    area.paint(head.colour((0.45, 0.30, 0.28)), mask * fade(lips.along.abs(), 0.35, 0.95) * 0.62)
    area.paint(head.colour((0.40, 0.26, 0.25)), mask * fade(y - lips.upper, 0.045, 0.0) * 0.5)
    rest = lips.lower - 0.055 * shown * lips.profile
    low = hole * inside(rest - y) * fade(lips.along.abs(), 0.75, 0.6)
    area.paint(head.colour((0.88, 0.84, 0.80)), low * fade(pose["opening"], 0.35, 0.6) * 0.8)


def _draw_seam(area: Canvas, head: Head, lips: _Lips, y: Tensor) -> None:
    """Draw the line between closed lips; it leaves as they part."""
    line = inside((y - lips.seam).abs() - 0.014) * (lips.along.abs() < 1.03)
    dark = head.colour(tuple(0.40 * c for c in head.person.lips))  # type: ignore[arg-type]
    area.paint(dark, line * 0.8 * fade(head.pose["opening"], 0.12, 0.02))
