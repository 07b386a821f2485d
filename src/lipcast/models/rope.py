"""Rotary position embedding over (time, height, width), computed for any position.

Input: integer positions per axis. Output: a table of (cos, sin) per token, applied to queries and keys.
Pairs of neighbouring channels (2i, 2i+1) are rotated; of the d/2 pairs of a head the first go
to time, then height, then width. Angles are exact (float64) before they become float32.

Legend: T tokens, N heads, d head size, P = d/2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcast.models.upload import upload

_THETA = 10_000.0
REF_FRAME = 30
"""Position of the reference in time before it starts to move ahead of the video."""
_MOTION_BUCKETS = ((1, 1, 1), (2, 1, 2), (16, 4, 4))
"""Packed motion, newest first: latent frames covered, tokens in time, pooling in space."""


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """cos_TP and sin_TP, float32."""

    cos_TP: Tensor
    sin_TP: Tensor

    @property
    def num_tokens(self) -> int:
        return self.cos_TP.shape[0]

    def to(self, device: torch.device) -> RotaryTable:
        return RotaryTable(upload(self.cos_TP, device), upload(self.sin_TP, device))

    def apply(self, x_TNd: Tensor) -> Tensor:
        """Rotate x_TNd; the arithmetic is float32, the result has x's dtype."""
        pairs = x_TNd.float().unflatten(-1, (-1, 2))
        re, im = pairs.unbind(-1)
        cos, sin = self.cos_TP.unsqueeze(1), self.sin_TP.unsqueeze(1)
        rotated = torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1)
        return rotated.flatten(-2).to(x_TNd.dtype)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Makes tables for one head size.

    `half_precision_tables` rounds cos and sin to float16, as the public implementation does;
    it moves the finished latents by 6e-5 and exists for comparison with it.
    """

    head_dim: int
    half_precision_tables: bool = False

    def video(self, first_frame: int, num_frames: int, height: int, width: int) -> RotaryTable:
        """Return the positions of `num_frames` latent frames from `first_frame`, tokens ordered (t, h, w)."""
        frames = range(first_frame, first_frame + num_frames)
        return self._grid(list(frames), list(range(height)), list(range(width)))

    def motion(self, height: int, width: int) -> RotaryTable:
        """Return the positions of packed motion: newest (t = -1), 2x (-3), 4x (-19, -14, -9, -4)."""
        tables, distance = [], 0
        for covered, num_frames, pool in _MOTION_BUCKETS:
            distance += covered
            frames = [-t for t in spread(distance, distance - covered + 1, num_frames)]
            rows = spread(0, height - 1, height // pool)
            columns = spread(0, width - 1, width // pool)
            tables.append(self._grid(frames, rows, columns))
        return RotaryTable(
            torch.cat([t.cos_TP for t in tables]), torch.cat([t.sin_TP for t in tables])
        )

    def _grid(self, frames: list[int], rows: list[int], columns: list[int]) -> RotaryTable:
        angles_TP = self.angles(frames, rows, columns)
        cos, sin = angles_TP.cos(), angles_TP.sin()
        if self.half_precision_tables:
            cos, sin = cos.half(), sin.half()
        return RotaryTable(cos.float(), sin.float())

    def angles(self, *positions: list[int]) -> Tensor:
        """Return angles_TP in float64 of a grid of positions (t, h, w); axes differ in frequency."""
        shape = [len(p) for p in positions]
        parts = []
        for axis, (position, channels) in enumerate(
            zip(positions, self._axis_channels(), strict=True)
        ):
            exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
            angles = torch.tensor(position, dtype=torch.float64)[:, None] * _THETA**-exponent
            view = [1, 1, 1, channels // 2]
            view[axis] = shape[axis]
            parts.append(angles.view(view).expand(*shape, channels // 2))
        return torch.cat(parts, dim=-1).flatten(0, 2)

    def _axis_channels(self) -> tuple[int, int, int]:
        spatial = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * spatial, spatial, spatial


def spread(first: int, last: int, count: int) -> list[int]:
    """Return `count` positions evenly from `first` to `last`, both included, truncated to integers."""
    if count == 1:
        return [first]
    step = (last - first) / (count - 1)
    return [int(first + i * step) for i in range(count - 1)] + [last]


def ref_frame(first_frame: int, distance: int) -> int:
    """Return the reference's time position for a block: `distance` ahead of it, at least 30."""
    return max(REF_FRAME, first_frame + distance)


def time_sinusoid(timesteps_B: Tensor, width: int) -> Tensor:
    """Return [cos(t w_i) | sin(t w_i)], w_i = 10000^(-i / (width/2)): [B, width] float32, float64 inside."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timesteps_B.device) / half
    angles = timesteps_B.double()[:, None] * _THETA**-exponent
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()
