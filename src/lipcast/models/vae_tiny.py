"""A tiny decoder of the same latents (TAEHV "taew2_1"): a picture nearly as good for little work.

Inputs: normalised latents, frame by frame. Outputs: video_BCTHW in [-1, 1], one picture for the
first latent frame of a video and four for any later one, as the autoencoder gives. State: of every
memory block the last picture that it saw. Invariants: B = 1; names of parameters are those of the
published files; a video decoded in chunks equals the video decoded at once, bit for bit.

Shape suffixes: B batch (1), C channels, T frames, H height, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from lipcast.models.vae_blocks import DecoderState, StreamState, frames_of, video_of

TINY_DECODER_WIDTHS = (256, 128, 64, 64)
"""Channels of the published files, from the latents to the pictures."""
_RGB = 3
_BLOCKS_PER_STAGE = 3
_FRAMES_OF_STAGE = (1, 2, 2)
"""Pictures that each stage makes of one."""
_LATENT_LIMIT = 3.0


class TinyDecoder(nn.Module):
    """A `StreamingDecoder`."""

    def __init__(self, widths: tuple[int, ...] = TINY_DECODER_WIDTHS, *, z_dim: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftLimit(), conv3x3(z_dim, widths[0]), nn.ReLU()]
        for (width, following), frames in zip(pairwise(widths), _FRAMES_OF_STAGE, strict=True):
            layers += [MemoryBlock(width) for _ in range(_BLOCKS_PER_STAGE)]
            layers += [nn.Upsample(scale_factor=2), MoreFrames(width, frames)]
            layers += [conv3x3(width, following, bias=False)]
        layers += [nn.ReLU(), conv3x3(widths[-1], _RGB)]
        self.decoder = nn.Sequential(*layers)

    def new_decoder_state(self) -> DecoderState:
        return DecoderState()

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        """Move the state on past these latents; their pictures are not wanted."""
        if latent_BCTHW.shape[2]:
            self.decode_chunk(latent_BCTHW, state)

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        """Decode the next frames of the video that `state` has come to; the state moves on."""
        weight = cast(nn.Conv2d, self.decoder[1]).weight
        # One latent at a time: the same shapes, so the same arithmetic, for every chunking.
        latents = latent_BCTHW.to(weight.dtype).split(1, dim=2)
        return torch.cat([self._pictures(z_BCTHW, state) for z_BCTHW in latents], dim=2)

    def _pictures(self, z_BCTHW: Tensor, state: StreamState) -> Tensor:
        return self.raw_pictures(z_BCTHW, state).clamp(0.0, 1.0) * 2 - 1

    def raw_pictures(self, z_BCTHW: Tensor, state: StreamState) -> Tensor:
        """Return the pictures of one latent frame from 0 to 1, not yet clamped."""
        is_first = not state.caches
        x_TCHW = frames_of(z_BCTHW)
        for name, layer in self.decoder.named_children():
            if isinstance(layer, MemoryBlock):
                x_TCHW = self._with_memory(name, layer, x_TCHW, state)
            else:
                x_TCHW = layer(x_TCHW)
        # Of the first latent only the last picture belongs to the video.
        return video_of(x_TCHW[-1:] if is_first else x_TCHW)

    def _with_memory(
        self, name: str, block: MemoryBlock, x_TCHW: Tensor, state: StreamState
    ) -> Tensor:
        """Run a block over some pictures, each beside the one before it; zeros before the first."""
        newest = state.caches.get(name, torch.zeros_like(x_TCHW[:1]))
        before_TCHW = torch.cat((newest, x_TCHW[:-1]))
        state.caches[name] = x_TCHW[-1:].clone()
        result: Tensor = block(x_TCHW, before_TCHW)
        return result


class SoftLimit(nn.Module):
    """Latents beyond ±3 are far from any that were trained on."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _LATENT_LIMIT) * _LATENT_LIMIT


class MemoryBlock(nn.Module):
    """Three convolutions over a picture and the one before it; beside them the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * width, width), nn.ReLU(), conv3x3(width, width), nn.ReLU(),
            conv3x3(width, width),
        )  # fmt: skip

    def forward(self, x_TCHW: Tensor, before_TCHW: Tensor) -> Tensor:
        mixed: Tensor = self.conv(torch.cat((x_TCHW, before_TCHW), dim=1))
        return torch.relu(mixed + x_TCHW)


class MoreFrames(nn.Module):
    """Every picture becomes `num_frames` pictures."""

    def __init__(self, width: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.conv = nn.Conv2d(width, width * num_frames, 1, bias=False)

    def forward(self, x_TCHW: Tensor) -> Tensor:
        more: Tensor = self.conv(x_TCHW).unflatten(1, (self.num_frames, -1)).flatten(0, 1)
        return more


def conv3x3(num_in: int, num_out: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, padding=1, bias=bias)
