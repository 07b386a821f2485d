"""Lips, teeth, tongue and what is dark behind them.

The inner edges of both lips are curves over the width; the opening is the distance between them, so that the
area of the inside follows the drive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import Canvas, Colour, blob, colour, fade, inside
from lipcast_train.data.drawing.head import Head
from lipcast_train.data.drawing.person import Rgb

MAX_OPENING = 0.50
"""Distance of the inner lips at an opening of 1."""
INSIDE = (0.30, 0.07, 0.09)
_TEETH = (0.96, 0.94, 0.90)
_TONGUE = (0.80, 0.38, 0.40)
_DEPTH = 0.13


@dataclass(frozen=True, slots=True)
class Gap:
    """Pixels between the lips, [N, H, W]: the place along the width, the height, and both edges' heights."""

    along: Tensor
    y: Tensor
    upper: Tensor
    lower: Tensor


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
    draw_inside(area, Gap(lips.along, y, lips.upper, lips.lower), head.pose)
    _draw_seam(area, head, lips, y)


def _lips(head: Head, x: Tensor) -> _Lips:
    face, pose = head.person.face, head.pose
    spread = 1 + 0.28 * (pose["width"] - 0.5) - 0.30 * pose["rounding"]
    half = face.mouth_width * (spread + 0.16 * pose["corners"].clamp_min(0))
    along = x / half
    profile = (1 - along.square()).clamp_min(0)
    arch = profile.sqrt()
    corners = pose["corners"] + face.smile
    seam = -0.20 * corners * (along.square().clamp_max(1.3) - 0.35)
    seam = seam + 0.010 * torch.exp(-(along / 0.25).square())
    opening = MAX_OPENING * pose["opening"] * (1 - 0.08 * pose["rounding"])
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


def draw_inside(area: Canvas, gap: Gap, pose: dict[str, Tensor], *, light: float = 1.0) -> None:
    """Draw what is seen between the lips: the dark, the tongue and the teeth.

    Teeth and tongue take a share of the gap that leaves most of it dark, unless a hiss bares the teeth.
    """
    hole = inside(torch.maximum(gap.upper - gap.y, gap.y - gap.lower)) * (gap.along.abs() < 1)
    area.paint(_lit(INSIDE, light, area), hole)
    height = gap.lower - gap.upper
    _draw_tongue(area, gap, height, hole, pose, light)
    _draw_teeth(area, gap, height, hole, pose, light)


def _draw_tongue(
    area: Canvas, gap: Gap, height: Tensor, hole: Tensor, pose: dict[str, Tensor], light: float
) -> None:
    rise = (0.16 + 0.20 * pose["tongue"]) * height * (1 - (gap.along / 0.72).square()).clamp_min(0)
    mask = hole * inside(gap.lower - rise - gap.y) * fade(height, 0.03, 0.10)
    area.paint(_lit(_TONGUE, light, area), mask * 0.92)
    area.paint(
        _lit(_TONGUE, 1.18 * light, area),
        mask * blob(gap.along, gap.y - gap.lower + 0.02, 0.4, 0.05) * 0.5,
    )
    area.paint(_lit(_TONGUE, 0.7 * light, area), mask * blob(gap.along, gap.y * 0, 0.05, 1.0) * 0.4)


def _draw_teeth(
    area: Canvas, gap: Gap, height: Tensor, hole: Tensor, pose: dict[str, Tensor], light: float
) -> None:
    shown, along = pose["teeth"], gap.along.abs()
    share = 0.13 + 0.12 * shown + 0.50 * fade(shown, 0.55, 0.95)
    mask = hole * inside(gap.y - gap.upper - share * height) * fade(along, 0.96, 0.84)
    mask = mask * fade(shown, 0.0, 0.2)
    area.paint(_lit(_TEETH, light, area), mask)
    seams = ((gap.along / 0.24).sub(0.5).remainder(1) - 0.5).abs()
    area.paint(_lit((0.62, 0.52, 0.48), light, area), mask * fade(seams, 0.09, 0.0) * 0.42)
    area.paint(_lit((0.45, 0.30, 0.28), light, area), mask * fade(along, 0.35, 0.95) * 0.62)
    shadow = fade((gap.y - gap.upper) / (share * height).clamp_min(1e-3), 0.5, 0.0)
    area.paint(_lit((0.40, 0.26, 0.25), light, area), mask * shadow * 0.4)
    low = hole * inside(gap.lower - 0.10 * height - gap.y) * fade(along, 0.7, 0.55)
    area.paint(_lit((0.86, 0.82, 0.78), light, area), low * fade(height, 0.22, 0.36) * 0.75)


def _lit(rgb: Rgb, light: float, area: Canvas) -> Colour:
    red, green, blue = (min(1.0, light * channel) for channel in rgb)
    return colour(red, green, blue, device=area.x_W.device)


def _draw_seam(area: Canvas, head: Head, lips: _Lips, y: Tensor) -> None:
    """Draw the line between closed lips; it leaves as they part."""
    line = inside((y - lips.seam).abs() - 0.014) * (lips.along.abs() < 1.03)
    dark = head.colour(tuple(0.40 * c for c in head.person.lips))  # type: ignore[arg-type]
    area.paint(dark, line * 0.8 * fade(head.pose["opening"], 0.12, 0.02))
