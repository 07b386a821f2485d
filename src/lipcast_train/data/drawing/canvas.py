"""Paint on batches of pictures: shapes are functions that are negative inside, edges are one pixel wide.

Shapes: N pictures, H and W pixels. Coordinates run from -1 to 1 along the short side, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

Colour = Tensor
"""[3, 1, 1] or [N, 3, H, W], 0 to 1."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Pictures and the coordinates of their pixels; windows of it paint on the same memory."""

    rgb_N3HW: Tensor
    x_W: Tensor
    y_H1: Tensor

    @classmethod
    def blank(cls, num_frames: int, side: int, *, device: torch.device | str = "cpu") -> Canvas:
        """Return black pictures of a side."""
        steps = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) * (2 / side) - 1
        rgb = torch.zeros(num_frames, 3, side, side, device=device)
        return cls(rgb, steps, steps[:, None])

    def window(self, left: float, top: float, right: float, bottom: float) -> Canvas:
        """Return the part between two corners, at least three pixels wide and high."""
        columns = _span(self.x_W, left, right)
        rows = _span(self.y_H1[:, 0], top, bottom)
        return Canvas(self.rgb_N3HW[..., rows, columns], self.x_W[columns], self.y_H1[rows])

    def paint(self, colour: Colour, mask_NHW: Tensor) -> None:
        """Lay a colour over the pictures, as opaque as the mask says."""
        self.rgb_N3HW.add_(mask_NHW.unsqueeze(-3) * (colour - self.rgb_N3HW))

    def shade(self, factor_NHW: Tensor) -> None:
        """Multiply the pictures by a factor around 1."""
        self.rgb_N3HW.mul_(factor_NHW.unsqueeze(-3)).clamp_(0, 1)


def _span(centres: Tensor, low: float, high: float) -> slice:
    step = float(centres[1] - centres[0])
    first = int((low - float(centres[0])) / step)
    first = min(max(0, first), len(centres) - 3)
    last = int((high - float(centres[0])) / step) + 2
    return slice(first, max(min(len(centres), last), first + 3))


def colour(red: float, green: float, blue: float, *, device: torch.device | str = "cpu") -> Colour:
    """Return a colour that broadcasts over pictures."""
    return torch.tensor([red, green, blue], device=device).view(3, 1, 1)


def inside(shape_NHW: Tensor) -> Tensor:
    """Return how much of each pixel lies inside (0 to 1) of any smooth function's negative side.

    The distance to the edge is the value over its gradient, which differences of neighbours give.
    """
    across = shape_NHW[..., :, 1:] - shape_NHW[..., :, :-1]
    down = shape_NHW[..., 1:, :] - shape_NHW[..., :-1, :]
    gradient = (pad(across, (0, 1)).square() + pad(down, (0, 0, 0, 1)).square()).sqrt_()
    return (0.5 - shape_NHW / gradient.clamp_min_(1e-6)).clamp_(0, 1)


def fade(value: Tensor, start: float, end: float) -> Tensor:
    """Return 0 up to `start`, 1 from `end`, smooth between; the other way round for end < start."""
    share = ((value - start) / (end - start)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def blob(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """Return a soft spot: 1 in the middle, falling off as a Gaussian of these half widths."""
    return torch.exp(-((x / width).square() + (y / height).square()))


def ellipse(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Return the function of an ellipse of these half axes."""
    return ((x / width).square() + (y / height).square()).sqrt() - 1


def box(x: Tensor, y: Tensor, width: float, height: float, radius: float) -> Tensor:
    """Return the signed distance of a rectangle with round corners."""
    dx, dy = x.abs() - (width - radius), y.abs() - (height - radius)
    outer = (dx.clamp_min(0).square() + dy.clamp_min(0).square()).sqrt()
    return outer + torch.maximum(dx, dy).clamp_max(0) - radius


def segment(x: Tensor, y: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """Return the distance from a line between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return ((x - start[0] - along * dx).square() + (y - start[1] - along * dy).square()).sqrt()


def merged(a: Tensor, b: Tensor, smooth: float) -> Tensor:
    """Return the union of two shapes, its seam rounded."""
    share = (0.5 + 0.5 * (b - a) / smooth).clamp(0, 1)
    return b + (a - b) * share - smooth * share * (1 - share)


def common(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Return the intersection of two shapes, its corner rounded."""
    outer = (a.add(radius).clamp_min(0).square() + b.add(radius).clamp_min(0).square()).sqrt()
    return outer + torch.maximum(a, b).add(radius).clamp_max(0) - radius


def texture(pattern_HW: Tensor, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return a pattern that tiles the plane by reflection, seen at coordinates."""
    x, y = torch.broadcast_tensors(x / scale, y / scale)
    places = torch.stack([x, y], dim=-1)
    patterns = pattern_HW.expand(len(places), 1, *pattern_HW.shape)
    return grid_sample(
        patterns, places, mode="bilinear", padding_mode="reflection", align_corners=True
    )[:, 0]
