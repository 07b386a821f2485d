"""Move a photographed face: an opening jaw, a drawn inside of the mouth, lids, brows and a swaying head.

Input: a portrait, the points of its face and a `Movement`. Output: frames. Every frame takes its pixels from
the portrait by one displacement; what a portrait does not show (teeth, tongue, the dark behind) is drawn.

Coordinates of the face: the origin is the middle of the mouth, the mouth reaches from -1 to 1, y points down
along the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from lipcast_train.data.drawing.canvas import Canvas, blob, fade, inside
from lipcast_train.data.drawing.mouth import Gap, draw_inside
from lipcast_train.data.landmarks import Points
from lipcast_train.data.movement import Movement

_OPENING = 0.85
"""Distance of the lips at an opening of 1, in half widths of the mouth."""
_SMILE = 0.28
_SEARCHES = 3
"""Steps to the point that a pixel comes from."""
_BATCH = 8


@dataclass(frozen=True, slots=True)
class _Face:
    """A face in its picture."""

    origin: tuple[float, float]
    """Middle of the mouth in the picture's coordinates, -1 to 1."""
    unit: float
    """Half width of the mouth in the same."""
    cosine: float
    sine: float
    seam: float
    """Height of the line between the lips in the middle."""
    chin: float
    jaw: float
    """Half width of the face at the height of the mouth."""
    eyes: tuple[tuple[float, float, float, float], ...]
    """Of each: middle x, upper lid, lower lid, half width."""
    brow: float
    light: float

    @classmethod
    def of(cls, portrait_HWC: NDArray[np.uint8], points: Points) -> _Face:
        side = portrait_HWC.shape[0]
        places = (points + 0.5) * (2 / side) - 1
        left, right = places[61], places[291]
        across = right - left
        unit = float(np.linalg.norm(across)) / 2
        cosine, sine = (across / (2 * unit)).tolist()
        middle = (left + right) / 2
        turned = (places - middle) @ np.array([[cosine, -sine], [sine, cosine]]) / unit
        eyes = tuple(
            (
                float((turned[outer, 0] + turned[inner, 0]) / 2), float(turned[upper, 1]),
                float(turned[lower, 1]), float(abs(turned[outer, 0] - turned[inner, 0]) / 2),
            )
            for outer, inner, upper, lower in ((33, 133, 159, 145), (263, 362, 386, 374))
        )  # fmt: skip
        inner = turned[[13, 14], 1]
        cheek = points[[205, 425]].round().astype(int).clip(0, side - 1)
        light = float(portrait_HWC[cheek[:, 1], cheek[:, 0]].max(axis=-1).mean()) / 255
        return cls(
            origin=(float(middle[0]), float(middle[1])),
            unit=unit,
            cosine=cosine,
            sine=sine,
            seam=float(inner.mean()),
            chin=float(turned[152, 1]),
            jaw=float(np.abs(turned[[58, 288], 0]).mean()),
            eyes=eyes,
            brow=float(turned[[105, 334], 1].mean()),
            light=min(1.0, 0.25 + 0.85 * light),
        )

    def at(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the face's coordinates of places in the picture."""
        x, y = (x - self.origin[0]) / self.unit, (y - self.origin[1]) / self.unit
        return x * self.cosine + y * self.sine, y * self.cosine - x * self.sine

    def back(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places in the picture."""
        turned_x, turned_y = x * self.cosine - y * self.sine, x * self.sine + y * self.cosine
        return turned_x * self.unit + self.origin[0], turned_y * self.unit + self.origin[1]


@torch.no_grad()
def animate(
    portrait_HWC: NDArray[np.uint8], points: Points, movement: Movement, *, side: int
) -> NDArray[np.uint8]:
    """Return a frame of a square portrait for every moment, [T, side, side, 3]."""
    face = _Face.of(portrait_HWC, points)
    picture = torch.from_numpy(portrait_HWC.copy()).permute(2, 0, 1)[None].float() / 255
    curves = {
        name.removesuffix("_T"): torch.from_numpy(np.array(curve, np.float32)).view(-1, 1, 1)
        for name, curve in movement.curves().items()
    }
    batches = [
        _frames(
            picture, face, {name: curve[i : i + _BATCH] for name, curve in curves.items()}, side
        )
        for i in range(0, len(movement), _BATCH)
    ]
    return torch.cat(batches).permute(0, 2, 3, 1).contiguous().numpy()


def _frames(picture: Tensor, face: _Face, pose: dict[str, Tensor], side: int) -> Tensor:
    canvas = Canvas.blank(len(pose["opening"]), side)
    x, y = face.at(*_unmoved(face, canvas.x_W, canvas.y_H1, pose))
    gap = _gap(face, x, y, pose)
    from_x, from_y = _source(face, x, y, gap, pose)
    places = torch.stack(face.back(from_x, from_y), dim=-1)
    seen = grid_sample(
        picture.expand(len(places), -1, -1, -1), places, mode="bicubic",
        padding_mode="reflection", align_corners=False,
    )  # fmt: skip
    canvas.rgb_N3HW.copy_(seen.clamp_(0, 1))
    _draw_lids(canvas, face, x, y, pose)
    draw_inside(canvas, gap, pose, light=face.light)
    return canvas.rgb_N3HW.mul(255).round_().to(torch.uint8)


def _unmoved(face: _Face, x: Tensor, y: Tensor, pose: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return where a pixel would be if the head had not moved; the background stays in its place."""
    size = 3.2 * face.unit
    near = blob(x - face.origin[0], y - face.origin[1] + 1.2 * size * 0.5, 1.6 * size, 1.9 * size)
    turn = (
        0.35 * pose["yaw"] * blob(x - face.origin[0], y - face.origin[1] + 0.5 * size, size, size)
    )
    dx = size * (pose["shift_x"] * near + 0.10 * turn)
    dy = size * (pose["shift_y"] + 0.05 * pose["pitch"]) * near
    roll = 0.6 * pose["roll"] * near
    below = y - face.origin[1] - size
    return x - dx + roll * below, y - dy - roll * (x - face.origin[0])


def _gap(face: _Face, x: Tensor, y: Tensor, pose: dict[str, Tensor]) -> Gap:
    half = _half_width(pose)
    along = x / half
    arch = (1 - along.square()).clamp_min(0).sqrt()
    smile = _SMILE * pose["corners"] * (along.square().clamp_max(1.2) - 0.3)
    seam = face.seam * (1 - along.square().clamp_max(1)) - smile
    opening = _OPENING * pose["opening"] * arch
    return Gap(along, y, seam - 0.22 * opening, seam + 0.78 * opening)


def _half_width(pose: dict[str, Tensor]) -> Tensor:
    spread = 1 + 0.22 * (pose["width"] - 0.5) - 0.22 * pose["rounding"]
    return spread + 0.10 * pose["corners"].clamp_min(0)


def _source(
    face: _Face, x: Tensor, y: Tensor, gap: Gap, pose: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return where in the resting face each pixel comes from."""
    around = blob(x, y - face.seam, 1.5, 1.0)
    from_x = x * (1 + (1 / _half_width(pose) - 1) * around)
    smile = -_SMILE * pose["corners"] * (x.square().clamp_max(1.5) - 0.3) * around
    y = y - smile
    opening = _OPENING * pose["opening"]
    resting = face.seam * (1 - from_x.square().clamp_max(1))
    upper = resting - 0.22 * opening * (1 - from_x.square()).clamp_min(0).sqrt()
    above = y + 0.22 * opening * _rise(from_x, upper - y)
    below = y
    for _ in range(_SEARCHES):
        below = y - 0.78 * opening * _drop(face, from_x, below - resting)
    split = (gap.upper + gap.lower) / 2 - smile
    from_y = torch.where(y < split, torch.minimum(above, resting), torch.maximum(below, resting))
    # Beside the corners nothing opens, and both halves meet.
    beside = fade(from_x.abs(), 0.96, 1.10)
    from_y = from_y + beside * (torch.where(y < resting, above, below) - from_y)
    return from_x, from_y + _brows(face, from_x, y, pose)


def _rise(x: Tensor, height: Tensor) -> Tensor:
    """Return how much of the upper lip's rise is left at a height above it."""
    return (1 - x.square()).clamp_min(0).sqrt() * fade(height, 0.9, 0.0)


def _drop(face: _Face, x: Tensor, depth: Tensor) -> Tensor:
    """Return how much of the lower lip's drop a place takes that lies so deep under the lips at rest."""
    chin = face.chin - face.seam
    share = (depth / chin).clamp(0, 1)
    half = 1.0 + (0.95 * face.jaw - 1.0) * fade(share, 0.0, 0.8)
    lateral = (1 - (x / half).square()).clamp_min(0)
    lateral = lateral.sqrt() + (lateral - lateral.sqrt()) * fade(share, 0.0, 0.5)
    return lateral * (1 - 0.45 * share) * fade(depth, 2.2 * chin, chin)


def _brows(face: _Face, x: Tensor, y: Tensor, pose: dict[str, Tensor]) -> Tensor:
    """Return what brows move: up or down, and their inner ends the other way."""
    moved = torch.zeros_like(y)
    for middle, _, _, half in face.eyes:
        outward = (x - middle) * (1.0 if middle > 0 else -1.0) / half
        rise = 0.20 * pose["brows"] + 0.13 * pose["brow_tilt"] * (0.3 - outward).clamp(-0.5, 1.2)
        moved = moved + rise * blob(outward / 1.5, (y - face.brow) / 0.45, 1.0, 1.0)
    return moved


def _draw_lids(canvas: Canvas, face: _Face, x: Tensor, y: Tensor, pose: dict[str, Tensor]) -> None:
    """Lower the lids: skin from above each eye covers it, down to a line of lashes."""
    for middle, upper, lower, half in face.eyes:
        along = (x - middle) / (1.08 * half)
        profile = (1 - along.square()).clamp_min(0)
        centre = 0.35 * upper + 0.65 * lower
        top = centre + (upper - centre - 0.03) * profile.sqrt()
        bottom = centre + (lower - centre) * profile
        closed = (1 - pose["lids"]).clamp(0, 1)
        edge = top + (bottom - top) * closed
        skin = _skin_above(canvas, x, y, middle, upper, half)
        mask = (
            inside(torch.maximum(top - 0.02 - y, y - edge))
            * (along.abs() < 1)
            * fade(closed, 0.0, 0.12)
        )
        canvas.paint(skin, mask)
        line = inside((y - edge).abs() - 0.028 * profile.sqrt()) * (along.abs() < 1)
        canvas.paint(skin * 0.28, line * fade(closed, 0.05, 0.3) * 0.85)


def _skin_above(
    canvas: Canvas, x: Tensor, y: Tensor, middle: float, upper: float, half: float
) -> Tensor:
    """Return the mean colour of the skin over an eye, [N, 3, 1, 1]."""
    weight = blob((x - middle) / half, (y - upper + 0.10) / 0.05, 0.8, 1.0).unsqueeze(1)
    total = (canvas.rgb_N3HW * weight).sum(dim=(2, 3), keepdim=True)
    return total / weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
