"""What is behind a person, what they wear, and the camera."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from lipcast_train.data.drawing.canvas import Canvas, blob, box, ellipse, fade, inside, merged, segment, texture
from lipcast_train.data.drawing.head import Head

_SHOULDERS = 1.62


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


def _draw_lights(canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
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
            tint = tuple(float(c) for c in rng.uniform(0.2, 0.85, 3) * 0.6 + 0.4 * np.array(head.person.background[1]))
            book = box(x - side * (at + wide), y - row + high + 0.02, wide * 0.9, high, 0.01)
            canvas.paint(head.colour((tint[0], tint[1], tint[2])), fade(book, 0.014, -0.006) * 0.9)
            at += 2 * wide


def _draw_window(canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
    middle = float(rng.choice([-0.62, 0.62])) + rng.uniform(-0.1, 0.1)
    frame = box(x - middle, y + 0.35, 0.36, 0.55, 0.03)
    sky = head.colour((0.80, 0.90, 0.98))
    canvas.paint(head.colour(head.person.background[0], 1.1), fade(frame, 0.07, 0.03))
    canvas.paint(sky, fade(frame, 0.01, -0.02))
    canvas.paint(head.colour((0.62, 0.74, 0.60)), fade(frame, 0.01, -0.02) * fade(y + 0.08 * torch.sin(7 * x), -0.16, -0.02) * 0.8)
    bars = torch.minimum((x - middle).abs(), (y + 0.35).abs()) - 0.018
    canvas.paint(head.colour(head.person.background[0], 1.08), fade(frame, 0.01, -0.02) * fade(bars, 0.012, -0.004))


def _draw_hills(canvas: Canvas, head: Head, x: Tensor, y: Tensor, rng: np.random.Generator) -> None:
    canvas.paint(head.colour((0.74, 0.86, 0.95)), fade(y, 0.4, -0.9) * 0.85)
    for depth, level in enumerate((-0.15, 0.08, 0.32)):
        phase, amount = rng.uniform(0, 6), rng.uniform(0.05, 0.12)
        line = level + amount * torch.sin(2.2 * x + phase) + 0.4 * amount * torch.sin(5.1 * x + 2 * phase)
        tint = (0.60 - 0.13 * depth, 0.72 - 0.11 * depth, 0.66 - 0.17 * depth)
        canvas.paint(head.colour(tint), fade(y - line, -0.02, 0.02))


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
    area.paint(head.colour(person.clothes_colour, 0.55), mask * fade(-person.finish.light[0] * x, 0.3, 2.2) * 0.5)
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


def _draw_collar(area: Canvas, head: Head, x: Tensor, y: Tensor, opening: Tensor, mask: Tensor) -> None:
    person, kind = head.person, head.person.clothes
    if kind == "turtleneck":
        roll = box(x, y - 1.50, 0.60, 0.20, 0.10)
        area.paint(head.colour(person.clothes_colour, 1.06), inside(roll))
        area.paint(head.colour(person.clothes_colour, 0.66), inside(roll) * fade(y, 1.55, 1.72) * 0.6)
        ribs = (x / 0.075).remainder(1).sub(0.5).abs()
        area.paint(head.colour(person.clothes_colour, 0.75), inside(roll) * fade(ribs, 0.15, 0.0) * 0.4)
    elif kind in {"crew neck", "blouse", "v-neck"}:
        band = mask * inside((opening - 0.05).abs() - 0.055)
        area.paint(head.colour(person.clothes_colour, 0.80), band * 0.8)
        if kind == "blouse":
            dots = ((x / 0.24).remainder(1) - 0.5).square() + ((y / 0.24).remainder(1) - 0.5).square()
            area.paint(head.colour(person.second_colour), mask * inside(dots - 0.025) * fade(opening, 0.12, 0.2) * 0.8)
    elif kind == "hoodie":
        hood = mask * inside(opening - 0.55)
        area.paint(head.colour(person.clothes_colour, 0.82), hood)
        area.paint(head.colour(person.clothes_colour, 0.50), hood * fade(opening, 0.10, 0.0) * 0.8)
        cords = segment(x.abs(), y, (0.26, 1.85), (0.30, 2.35)) - 0.028
        area.paint(head.colour((0.95, 0.94, 0.92)), inside(cords))
    else:
        _draw_lapels(area, head, x, y, opening, mask)


def _draw_lapels(area: Canvas, head: Head, x: Tensor, y: Tensor, opening: Tensor, mask: Tensor) -> None:
    person = head.person
    if person.clothes == "blazer":
        pale = tuple(0.25 * c + 0.72 for c in person.second_colour)
        shirt = (pale[0], pale[1], pale[2])
        under = inside(torch.maximum(opening, 1.72 + 0.9 * (0.30 - x.abs()).clamp_min(0) - 0.25 * x.abs() - y))
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
    area.paint(head.colour(person.clothes_colour, 0.55), mask * fade((opening - 0.25).abs(), 0.05, 0.0) * (y < 2.0) * 0.4)
    area.paint(head.colour(person.clothes_colour, 0.6), mask * inside(x.abs() - 0.012) * (y > 2.2) * 0.6)
    buttons = ellipse(x - 0.06, (y - 2.55).remainder(0.5) - 0.25, 0.035, 0.035)
    area.paint(head.colour((0.96, 0.95, 0.92)), mask * inside(buttons) * (y > 2.3))


def photographed(rgb_N3HW: Tensor, head: Head, *, first_frame: int = 0) -> Tensor:
    """Return the pictures as the person's camera sees them: colour of the light, blur, edges, grain."""
    finish = head.person.finish
    warmth = torch.tensor([1 + finish.warmth, 1.0, 1 - finish.warmth], device=rgb_N3HW.device)
    rgb = rgb_N3HW * warmth.view(3, 1, 1)
    side = rgb.shape[-1]
    if finish.blur:
        rgb = _blurred(rgb, finish.blur * side / 256)
    if finish.vignette:
        steps = torch.linspace(-1, 1, side, device=rgb.device)
        far = steps.square() + steps[:, None].square()
        rgb = rgb * (1 - 0.5 * finish.vignette * fade(far, 0.6, 2.0))
    if finish.grain:
        rgb = rgb + finish.grain * _grain(head, rgb, first_frame)
    return rgb.clamp(0, 1)


def _blurred(rgb: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-2.0, 3.0, device=rgb.device)
    kernel = torch.exp(-(taps / max(sigma, 0.2)).square() / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 5)
    rgb = conv2d(pad(rgb, (2, 2, 0, 0), mode="replicate"), kernel, groups=3)
    return conv2d(pad(rgb, (0, 0, 2, 2), mode="replicate"), kernel.transpose(2, 3), groups=3)


def _grain(head: Head, rgb: Tensor, first_frame: int) -> Tensor:
    """Return noise that differs from frame to frame: one pattern, shifted by a lot of each frame."""
    side = rgb.shape[-1]
    pattern = head.noise(side, 17)
    rng = np.random.default_rng((head.person.noise_seed, 18))
    shifts = rng.integers(side, size=(first_frame + len(rgb), 2))[first_frame:].tolist()
    return torch.stack([pattern.roll(shift, dims=(0, 1)) for shift in shifts]).unsqueeze(1)
