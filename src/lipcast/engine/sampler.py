"""Noise and the Euler step.

Noise is a function of (seed, latent frame), made on the CPU: every device and schedule starts from
the same numbers. Frames are drawn clip by clip, one generator a clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcast.config.geometry import Geometry
from lipcast.config.timesteps import FlowSchedule


class NoiseSource:
    """Standard normal latents of any run of latent frames."""

    def __init__(self, seed: int, geometry: Geometry) -> None:
        self._seed = seed
        self._window = geometry.window
        self._channels = geometry.latent_channels
        self._size = (geometry.latent_height, geometry.latent_width)
        self._drawn: tuple[int, Tensor] | None = None

    def frames(self, first_frame: int, count: int) -> Tensor:
        """Return [C, count, H, W] float32; a run across a clip border takes the rest from the next clip."""
        parts, frame, end = [], first_frame, first_frame + count
        while frame < end:
            clip, offset = divmod(frame, self._window)
            taken = min(end - frame, self._window - offset)
            parts.append(self._clip(clip)[:, offset : offset + taken])
            frame += taken
        return torch.cat(parts, dim=1)

    def _clip(self, clip: int) -> Tensor:
        """Return the draw of a whole clip, [C, window, H, W]; the last one is kept."""
        if self._drawn is None or self._drawn[0] != clip:
            generator = torch.Generator().manual_seed((self._seed + clip) % 2**64)
            shape = (self._channels, self._window, *self._size)
            self._drawn = (clip, torch.randn(shape, generator=generator))
        return self._drawn[1]


def euler_step(latent: Tensor, velocity: Tensor, flow: FlowSchedule, step: int) -> Tensor:
    """Return x + (sigma of the next step - sigma of this one) * v, in float32."""
    return latent + (flow.sigmas[step + 1] - flow.sigmas[step]) * velocity.float()
