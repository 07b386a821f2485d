"""What is behind a person: the same in every frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lipcast_train.data.drawing.canvas import (
    Canvas,
    blob,
    box,
    ellipse,
    fade,
    inside,
)
from lipcast_train.data.drawing.head import Head


def draw_background(canvas: Canvas, head: Head) -> None:
    """Draw the scene, the same in every frame."""
    first, second = (head.colour(rgb) for rgb in head.person.background)
    rng = np.random.default_rng((head.person.noise_seed, 11))
    x, y = torch.broadcast_tensors(canvas.x_W[None, None], canvas.y_H1[None])
    canvas.paint(first, torch.ones_like(x))
    canvas.paint(second, fade(y + 0.25 * x, -1.2, 1.3))
    scene = head.person.scene
    if scene == "glow":
        canvas.paint(head.colour(head.person.background[0], 1.12), blob(x, y + 0.1, 0.9, 0.9) * 0.8)
    elif scene in {"bokeh", "photo"}:
        _draw_lights(canvas, head, x, y, rng)
    elif scene == "stripes":
        wide = rng.uniform(0.18, 0.4)
        stripe = ((x + y * rng.uniform(-0.8, 0.8)) / wide).remainder(2) - 1
        canvas.paint(second, inside(stripe.abs() - 0.5) * 0.35)
    elif scene == "room":
        _draw_room(canvas, head, x, y, rng)
    elif scene == "window":
        _draw_window(canvas, head, x, y, rng)
    elif scene == "hills":
        _draw_hills(canvas, head, x, y, rng)


def _draw_lights(
    canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator
) -> None:
    """Draw blurred lights; behind a photographed person, blurred things of any colour as well."""
    if head.person.scene == "photo":
        coarse = rng.normal(0, 0.14, (1, 1, 7, 7)) + rng.normal(0, 0.05, (1, 3, 7, 7))
        patches = torch.from_numpy(coarse.astype(np.float32)).to(x.device)
        smooth = interpolate(patches, size=x.shape[-2:], mode="bicubic", align_corners=True)
        canvas.rgb_N3HW.mul_(1 + smooth).clamp_(0, 1)
    for _ in range(int(rng.integers(6, 14))):
        radius, alpha = rng.uniform(0.06, 0.22), rng.uniform(0.10, 0.40)
        disc = ellipse(x - rng.uniform(-1, 1), y - rng.uniform(-1, 0.6), radius, radius)
        tint = np.clip(np.array(head.person.background[0]) * 1.15 + rng.normal(0, 0.08, 3), 0, 1)
        canvas.paint(head.colour((tint[0], tint[1], tint[2])), fade(disc, 0.06, -0.06) * alpha)
        canvas.paint(head.colour((1.0, 0.98, 0.92)), fade(disc.abs(), 0.10, 0.0) * alpha * 0.35)


def _draw_room(canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
    """Draw a shelf with books, out of focus."""
    side = -1.0 if rng.random() < 0.5 else 1.0
    wood = head.colour(head.person.background[1], 0.62)
    for row in (-0.75, -0.2, 0.35):
        canvas.paint(wood, fade(box(x - side * 0.78, y - row, 0.42, 0.025, 0.01), 0.02, -0.01))
        at = 0.42
        while at < 1.1:
            wide, high = rng.uniform(0.025, 0.06), rng.uniform(0.14, 0.22)
            tint = tuple(
                float(c)
                for c in rng.uniform(0.2, 0.85, 3) * 0.6 + 0.4 * np.array(head.person.background[1])
            )
            book = box(x - side * (at + wide), y - row + high + 0.02, wide * 0.9, high, 0.01)
            canvas.paint(head.colour((tint[0], tint[1], tint[2])), fade(book, 0.014, -0.006) * 0.9)
            at += 2 * wide


def _draw_window(
    canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator
) -> None:
    middle = float(rng.choice([-0.62, 0.62])) + rng.uniform(-0.1, 0.1)
    frame = box(x - middle, y + 0.35, 0.36, 0.55, 0.03)
    sky = head.colour((0.80, 0.90, 0.98))
    canvas.paint(head.colour(head.person.background[0], 1.1), fade(frame, 0.07, 0.03))
    canvas.paint(sky, fade(frame, 0.01, -0.02))
    canvas.paint(
        head.colour((0.62, 0.74, 0.60)),
        fade(frame, 0.01, -0.02) * fade(y + 0.08 * torch.sin(7 * x), -0.16, -0.02) * 0.8,
    )
    bars = torch.minimum((x - middle).abs(), (y + 0.35).abs()) - 0.018
    canvas.paint(
        head.colour(head.person.background[0], 1.08),
        fade(frame, 0.01, -0.02) * fade(bars, 0.012, -0.004),
    )


def _draw_hills(canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
    canvas.paint(head.colour((0.74, 0.86, 0.95)), fade(y, 0.4, -0.9) * 0.85)
    for depth, level in enumerate((-0.15, 0.08, 0.32)):
        phase, amount = rng.uniform(0, 6), rng.uniform(0.05, 0.12)
        line = (
            level
            + amount * torch.sin(2.2 * x + phase)
            + 0.4 * amount * torch.sin(5.1 * x + 2 * phase)
        )
        tint = (0.60 - 0.13 * depth, 0.72 - 0.11 * depth, 0.66 - 0.17 * depth)
        canvas.paint(head.colour(tint), fade(y - line, -0.02, 0.02))
