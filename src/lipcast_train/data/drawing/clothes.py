"""Shoulders and what covers them."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcast_train.data.drawing.canvas import (
    Canvas,
    box,
    ellipse,
    fade,
    inside,
    merged,
    segment,
    texture,
)
from lipcast_train.data.drawing.head import Head


def draw_clothes(canvas: Canvas, head: Head) -> None:
    """Draw shoulders and clothes."""
    person = head.person
    area = head.window(canvas, -2.7, 1.0, 2.7, 4.0)
    x, y = head.body_at(area)
    body = merged(ellipse(x, y - 3.15, 2.2, 1.5), 1.30 + 0.85 * x.abs() - y, 0.45)
    body = torch.maximum(body, 1.18 - y)
    skin = inside(torch.maximum(body, x.abs() - 0.95))
    area.paint(head.colour(person.skin, 0.94), skin * (y > 1.5))
    _draw_collarbones(area, head, x, y, skin)
    opening = _neckline(head, x, y)
    cloth = torch.maximum(body, -opening)
    mask = inside(cloth)
    area.paint(head.colour(person.clothes_colour), mask)
    folds = texture(head.noise(10, 13), x, y * 0.45, 2.0)
    area.paint(head.colour(person.clothes_colour, 0.62), mask * fade(folds, 0.3, 1.6) * 0.30)
    area.paint(head.colour(person.clothes_colour, 1.25), mask * fade(-folds, 0.3, 1.6) * 0.22)
    area.paint(
        head.colour(person.clothes_colour, 0.55),
        mask * fade(-person.finish.light[0] * x, 0.3, 2.2) * 0.5,
    )
    area.paint(head.colour(person.clothes_colour, 0.58), mask * fade(body, -0.10, 0.0) * 0.3)
    _draw_collar(area, head, x, y, opening, mask)


def _neckline(head: Head, x: Tensor, y: Tensor) -> Tensor:
    kind = head.person.clothes
    if kind == "turtleneck":
        return torch.full_like(x, 1.0) + 0 * y
    if kind in {"v-neck", "blazer"}:
        return torch.maximum(x.abs() - 0.62 + 0.52 * (y - 1.45), 1.2 - y)
    if kind == "shirt":
        return torch.maximum(x.abs() - 0.50 + 0.62 * (y - 1.45), 1.2 - y)
    wide = 0.86 if kind == "blouse" else 0.66
    return ellipse(x, y - 1.45, wide, 0.46 if kind == "blouse" else 0.36)


def _draw_collarbones(area: Canvas, head: Head, x: Tensor, y: Tensor, skin: Tensor) -> None:
    bones = segment(x.abs(), y, (0.10, 1.86), (0.62, 1.74))
    area.paint(head.shadow(head.person.skin, 0.8), skin * fade(bones, 0.07, 0.0) * 0.35)
    if head.person.necklace:
        chain = (ellipse(x, y - 1.45, 0.46, 0.34).abs() - 0.035) * 0.4
        area.paint(head.colour((0.92, 0.78, 0.44)), skin * inside(chain) * (y > 1.5))
        area.paint(head.colour((0.98, 0.90, 0.66)), inside(ellipse(x, y - 1.82, 0.05, 0.06)))


def _draw_collar(
    area: Canvas, head: Head, x: Tensor, y: Tensor, opening: Tensor, mask: Tensor
) -> None:
    person, kind = head.person, head.person.clothes
    if kind == "turtleneck":
        roll = box(x, y - 1.50, 0.60, 0.20, 0.10)
        area.paint(head.colour(person.clothes_colour, 1.06), inside(roll))
        area.paint(
            head.colour(person.clothes_colour, 0.66), inside(roll) * fade(y, 1.55, 1.72) * 0.6
        )
        ribs = (x / 0.075).remainder(1).sub(0.5).abs()
        area.paint(
            head.colour(person.clothes_colour, 0.75), inside(roll) * fade(ribs, 0.15, 0.0) * 0.4
        )
    elif kind in {"crew neck", "blouse", "v-neck"}:
        band = mask * inside((opening - 0.05).abs() - 0.055)
        area.paint(head.colour(person.clothes_colour, 0.80), band * 0.8)
        if kind == "blouse":
            dots = ((x / 0.24).remainder(1) - 0.5).square() + (
                (y / 0.24).remainder(1) - 0.5
            ).square()
            area.paint(
                head.colour(person.second_colour),
                mask * inside(dots - 0.025) * fade(opening, 0.12, 0.2) * 0.8,
            )
    elif kind == "hoodie":
        hood = mask * inside(opening - 0.55)
        area.paint(head.colour(person.clothes_colour, 0.82), hood)
        area.paint(head.colour(person.clothes_colour, 0.50), hood * fade(opening, 0.10, 0.0) * 0.8)
        cords = segment(x.abs(), y, (0.26, 1.85), (0.30, 2.35)) - 0.028
        area.paint(head.colour((0.95, 0.94, 0.92)), inside(cords))
    else:
        _draw_lapels(area, head, x, y, opening, mask)


def _draw_lapels(
    area: Canvas, head: Head, x: Tensor, y: Tensor, opening: Tensor, mask: Tensor
) -> None:
    person = head.person
    if person.clothes == "blazer":
        pale = tuple(0.25 * c + 0.72 for c in person.second_colour)
        shirt = (pale[0], pale[1], pale[2])
        under = inside(
            torch.maximum(opening, 1.72 + 0.9 * (0.30 - x.abs()).clamp_min(0) - 0.25 * x.abs() - y)
        )
        area.paint(head.colour(shirt), under)
        area.paint(head.colour(shirt, 0.82), under * fade(opening, -0.12, 0.0))
        lapel = mask * inside(torch.maximum(opening - 0.30, x.abs() - 1.25 + 0.4 * (y - 1.4)))
        area.paint(head.colour(person.clothes_colour, 1.14), lapel)
        edge = mask * inside((opening - 0.30).abs() - 0.014)
        area.paint(head.colour(person.clothes_colour, 0.5), edge * 0.8)
        return
    flap = torch.maximum(torch.maximum(opening - 0.22, -opening - 0.02), y - 2.05 + 0.45 * x.abs())
    flap = inside(torch.maximum(flap, torch.maximum(x.abs() - 0.68, 1.34 - y)))
    area.paint(head.colour(person.clothes_colour, 1.15), flap)
    area.paint(
        head.colour(person.clothes_colour, 0.55),
        mask * fade((opening - 0.25).abs(), 0.05, 0.0) * (y < 2.0) * 0.4,
    )
    area.paint(
        head.colour(person.clothes_colour, 0.6), mask * inside(x.abs() - 0.012) * (y > 2.2) * 0.6
    )
    buttons = ellipse(x - 0.06, (y - 2.55).remainder(0.5) - 0.25, 0.035, 0.035)
    area.paint(head.colour((0.96, 0.95, 0.92)), mask * inside(buttons) * (y > 2.3))
