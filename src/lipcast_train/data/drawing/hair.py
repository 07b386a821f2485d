"""Hair, beards and headscarves.

Hair is what lies between a dome over the skull and an opening for the face; its strands run from the parting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import (
    Canvas,
    blob,
    common,
    ellipse,
    fade,
    inside,
    merged,
    texture,
)
from lipcast_train.data.drawing.face import face_shape
from lipcast_train.data.drawing.head import Head


@dataclass(frozen=True, slots=True)
class _Style:
    """Heights in half widths of the face."""

    top: float = 0.16
    side: float = 0.07
    end: float = 0.15
    """How far down the hair beside the face reaches."""
    opening: float = 0.90
    """Half width of the face that stays free."""
    back: float | None = None
    """How far down the hair behind the head reaches."""
    back_width: float = 1.15
    bumps: float = 0.0
    slope: float = 0.0
    """How much lower the hairline is at the temples than at the parting."""


_STYLES = {
    "shaved": _Style(top=0.015, side=0.0, end=-0.15, opening=0.93, slope=0.15),
    "crew": _Style(top=0.09, side=0.02, end=0.0, opening=0.92, slope=0.12),
    "parted": _Style(top=0.20, side=0.07, end=0.12, slope=0.42),
    "quiff": _Style(top=0.34, side=0.03, end=0.05, slope=0.22),
    "curly": _Style(top=0.32, side=0.16, end=0.30, bumps=0.055, slope=0.10),
    "afro": _Style(top=0.58, side=0.52, end=0.62, bumps=0.03),
    "bob": _Style(top=0.18, side=0.17, end=1.02, opening=0.86, back=1.12, back_width=1.2, slope=0.5),
    "fringe": _Style(top=0.18, side=0.16, end=1.1, opening=0.84, back=1.5, back_width=1.16),
    "long": _Style(top=0.16, side=0.13, end=1.9, opening=0.84, back=2.9, back_width=1.18, slope=0.6),
    "wavy": _Style(
        top=0.22, side=0.20, end=1.9, opening=0.84, back=2.7, back_width=1.30, bumps=0.06, slope=0.55
    ),
    "bun": _Style(top=0.08, side=0.03, end=0.08, slope=0.30),
    "ponytail": _Style(top=0.09, side=0.04, end=0.10, slope=0.35),
}  # fmt: skip


def draw_hair_behind(canvas: Canvas, head: Head) -> None:
    """Draw what hangs behind the neck, the bun and the ponytail."""
    person = head.person
    if person.hair == "scarf":
        return
    style = _STYLES[person.hair]
    area = head.window(canvas, -1.8, -1.9, 1.8, 3.0)
    x, y = head.at(area, -0.10)
    shape = _behind(head, style, x, y)
    if shape is None:
        return
    mask = inside(shape)
    area.paint(head.colour(person.hair_colour, 0.66), mask)
    _draw_strands(area, head, x, y, mask, straight=True)
    area.paint(
        head.colour(person.hair_colour, 0.35),
        mask * fade(x.abs(), 1.0, 0.3) * fade(y, 0.7, 1.3) * 0.7,
    )


def _behind(head: Head, style: _Style, x: Tensor, y: Tensor) -> Tensor | None:
    if head.person.hair == "bun":
        return ellipse(x, y + 1.46, 0.46, 0.40)
    if head.person.hair == "ponytail":
        side = 1.0 if head.person.face.parting < 0 else -1.0
        bend = x * side - 1.02 - 0.22 * torch.sin(1.7 * (y + 0.9))
        return torch.maximum(
            bend.abs() - 0.26 * fade(y, 1.9, 0.2) - 0.05,
            ellipse(x * side - 1.0, y - 0.45, 0.9, 1.45),
        )
    if style.back is None:
        return None
    wave = style.bumps * torch.sin(5.5 * y + 1.0) * fade(y, -0.2, 0.6)
    width = style.back_width * (0.88 + 0.12 * fade(y, -1.0, 0.6) - 0.10 * fade(y, 1.0, style.back))
    sides = torch.maximum((x - wave).abs() - width, y - style.back - 0.12 * torch.cos(2.0 * x))
    return torch.maximum(sides, -0.5 - y)


def draw_hair(canvas: Canvas, head: Head) -> None:
    """Draw what lies over the skull and beside the face, and the shadow it throws on the forehead."""
    person = head.person
    if person.hair == "scarf":
        _draw_scarf(canvas, head)
        return
    style = _STYLES[person.hair]
    area = head.window(canvas, -1.75, -2.1, 1.75, max(0.9, style.end + 0.3))
    x, y = head.at(area, 0.03)
    dome, opening = _dome(head, style, x, y), _opening(head, style, x, y)
    end = y - style.end - 0.06 * torch.sin(4 * x)
    hair = torch.maximum(torch.maximum(dome, -opening), end)
    skin = inside(face_shape(head, x, y))
    below = fade(opening, -0.22, 0.0) * (opening < 0) * skin
    area.paint(head.shadow(person.skin, 1.0), below * 0.45)
    mask = inside(hair)
    if person.hair == "shaved":
        mask = mask * (0.45 + 0.2 * fade(y, -0.4, -0.9))
    area.paint(head.colour(person.hair_colour), mask)
    _draw_strands(area, head, x, y, mask, straight=False)
    _draw_volume(area, head, x, y, mask, dome, opening)


def _dome(head: Head, style: _Style, x: Tensor, y: Tensor) -> Tensor:
    volume = head.person.face.volume
    if style.bumps and head.person.hair != "wavy":
        angle = torch.atan2(x, -(y + 0.2))
        rough = torch.sin(13 * angle + 1.3) + 0.7 * torch.sin(21 * angle)
        x, y = (
            x * (1 - style.bumps * 0.5 * rough),
            (y + 0.2) * (1 - style.bumps * 0.5 * rough) - 0.2,
        )
    top = style.top * volume
    amount = 0.06 if head.person.hair == "wavy" else 0.0
    wave = amount * torch.sin(5.5 * y + 1.0) * fade(y, 0.0, 0.8)
    skull = ellipse(x, y + 0.26 + 0.5 * top, 1.0 + style.side, 1.04 + 0.5 * top)
    if head.person.hair == "quiff":
        lean = 0.25 if head.person.face.parting > 0 else -0.25
        skull = merged(skull, ellipse(x - lean, y + 1.18 + 0.3 * top, 0.78, 0.30 + 0.4 * top), 0.15)
    if head.person.hair == "afro":
        skull = merged(skull, ellipse(x, y + 0.35, 1.42, 1.42), 0.1)
    sides = torch.maximum((x - wave).abs() - 1.0 - style.side, -0.26 - y)
    return torch.minimum(skull, sides) if style.end > 0.8 else skull


def _opening(head: Head, style: _Style, x: Tensor, y: Tensor) -> Tensor:
    """Return the part of the face that hair leaves free."""
    face = head.person.face
    if head.person.hair == "fringe":
        line = face.hairline + 0.22 + 0.025 * torch.sin(23 * x) + 0.06 * x.square()
    else:
        centre = face.parting * (0.9 if style.slope > 0.3 else 0.0)
        away = ((x - centre).square() + 0.02).sqrt() - 0.14
        line = face.hairline + style.slope * away + 0.30 * x.square().square()
    width = style.opening + 0.05 * fade(y, 0.0, 0.8)
    return common(x.abs() - width, line - y, 0.15)


def _draw_strands(
    area: Canvas, head: Head, x: Tensor, y: Tensor, mask: Tensor, *, straight: bool
) -> None:
    person = head.person
    pattern = head.noise(96, 7 if straight else 8)
    if person.hair in {"afro", "curly"}:
        curls = texture(pattern, x, y, 1.6)
        area.paint(head.colour(person.hair_colour, 1.55), mask * fade(curls, 0.5, 1.6) * 0.5)
        area.paint(head.colour(person.hair_colour, 0.5), mask * fade(-curls, 0.4, 1.6) * 0.5)
        return
    if straight:
        across, along = x + 0.05 * torch.sin(3 * y), y * 0.06
    else:
        parting = person.face.parting
        across = torch.atan2(x - parting, 1.3 - y)
        along = (x.square() + (y - 0.2).square()).sqrt() * 0.08
    fine = texture(pattern, across, along, 0.9 if straight else 0.55)
    area.paint(head.colour(person.hair_colour, 1.5), mask * fade(fine, 0.35, 1.5) * 0.38)
    area.paint(head.colour(person.hair_colour, 0.52), mask * fade(-fine, 0.3, 1.5) * 0.45)


def _draw_volume(
    area: Canvas, head: Head, x: Tensor, y: Tensor, mask: Tensor, dome: Tensor, opening: Tensor
) -> None:
    """Draw the gloss on top, and the dark towards edges and roots."""
    person = head.person
    light_x, _, strength = person.finish.light
    area.paint(head.colour(person.hair_colour, 0.48), mask * fade(dome, -0.16, 0.02) * 0.45)
    area.paint(head.colour(person.hair_colour, 0.42), mask * fade(opening, 0.12, 0.0) * 0.45)
    area.paint(
        head.colour(person.hair_colour, 0.55), mask * fade(-light_x * x, 0.2, 1.2) * 0.35 * strength
    )
    if person.hair in {"afro", "curly", "shaved"}:
        return
    ring = (x * 0.75 - 0.35 * light_x).square() + (y - 0.1).square()
    gloss = blob(ring.sqrt() - 1.06, x - 0.3 * light_x, 0.085, 0.65)
    pale = tuple(0.45 + 0.55 * c for c in person.hair_colour)
    area.paint(head.colour((pale[0], pale[1], pale[2])), mask * gloss * 0.38)


def _draw_scarf(canvas: Canvas, head: Head) -> None:
    person = head.person
    area = head.window(canvas, -1.5, -1.7, 1.5, 2.4)
    x, y = head.at(area, 0.0)
    outer = merged(ellipse(x, y + 0.24, 1.14, 1.20), ellipse(x, y - 0.75, 0.98, 1.05), 0.4)
    drape = torch.maximum(x.abs() - 0.75 - 0.55 * fade(y, 1.0, 2.1), 0.8 - y)
    opening = merged(ellipse(x, y, 0.84, 0.86), ellipse(x, y - 0.55, 0.70, 0.66), 0.3)
    hole = inside(opening)
    mask = inside(torch.maximum(merged(outer, drape, 0.2), -opening))
    area.paint(head.shadow(person.skin, 1.1), hole * fade(opening, -0.16, 0.0) * 0.5)
    area.paint(head.colour(person.hair_colour), mask)
    folds = torch.sin(9 * (opening + 0.25 * x * y) + 2.0 * y) * fade(opening, 0.05, 0.3)
    area.paint(head.colour(person.hair_colour, 0.72), mask * fade(folds, 0.2, 1.0) * 0.5)
    area.paint(head.colour(person.hair_colour, 1.16), mask * fade(-folds, 0.3, 1.0) * 0.5)
    area.paint(head.colour(person.hair_colour, 0.6), mask * fade(opening, 0.12, 0.0) * 0.6)
    area.paint(
        head.colour(person.hair_colour, 0.62),
        mask * fade(-person.finish.light[0] * x, 0.1, 1.2) * 0.5,
    )


def draw_beard(canvas: Canvas, head: Head) -> None:
    """Draw what grows around the mouth; draw the mouth after it."""
    person, face = head.person, head.person.face
    if person.beard == "none":
        return
    area = head.window(canvas, -1.05, 0.1, 1.05, 1.5)
    x, y = head.at(area, 0.06)
    skin = inside(face_shape(head, *head.at(area)))
    line = (
        face.mouth_y
        - 0.42
        + 0.55 * (x.abs() - 0.25).clamp_min(0)
        - 0.95 * (x.abs() - 0.62).clamp_min(0)
    )
    cheeks = fade(y - line, 0.0, 0.13)
    hang = y - face.mouth_y + 0.165 - 0.28 * x.square()
    lip = fade(
        hang.abs() - 0.075 * (1 - (x / 0.46).square()).clamp_min(0).sqrt(), 0.02, -0.03
    ) * fade(x.abs(), 0.45, 0.36)
    if person.beard == "moustache":
        mask, opacity = lip * skin, 0.92
    else:
        bare = 1 - blob(x, y - face.mouth_y - 0.02, 0.30, 0.11)
        mask, opacity = skin * torch.maximum(cheeks * bare, lip), 0.9
    hairs = texture(head.noise(128, 9), x, y * 0.5, 1.3)
    if person.beard == "stubble":
        opacity = 0.30
    shade = 0.75 if sum(person.hair_colour) < 1.2 else 0.6
    area.paint(
        head.colour(person.hair_colour, shade), mask * opacity * (1 + 0.18 * hairs).clamp(0, 1.1)
    )
    area.paint(head.colour(person.hair_colour, 1.4), mask * fade(hairs, 0.6, 1.6) * 0.3 * opacity)
