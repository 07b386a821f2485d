"""Frame packing: the last motion latents become condition tokens, coarser the farther back they lie.

Input: motion latents, newest last. Output: tokens [newest | 2x | 4x] for the sink.

Legend: C latent channels, F frames, H W latent size, T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.models.layers import conv32

_BUCKET_FRAMES = (1, 2, 16)


class FramePacker(nn.Module):
    """Three strided convolutions, one per bucket of 1, 2 and 16 latent frames."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.proj_2x = nn.Conv3d(channels, dim, kernel_size=(2, 4, 4), stride=(2, 4, 4))
        self.proj_4x = nn.Conv3d(channels, dim, kernel_size=(4, 8, 8), stride=(4, 8, 8))

    def forward(self, motion_CFHW: Tensor) -> Tensor:
        """Return tokens_TD of the last 19 latents; fewer are preceded by zeros."""
        needed = sum(_BUCKET_FRAMES)
        missing = max(0, needed - motion_CFHW.shape[1])
        padded = functional.pad(motion_CFHW, (0, 0, 0, 0, missing, 0))[:, -needed:]
        oldest, middle, newest = padded.split(list(reversed(_BUCKET_FRAMES)), dim=1)
        buckets = ((self.proj, newest), (self.proj_2x, middle), (self.proj_4x, oldest))
        return torch.cat([conv32(conv, frames).flatten(1).T for conv, frames in buckets])
