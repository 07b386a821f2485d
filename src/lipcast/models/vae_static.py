"""Encoding a picture that stands still, without computing the same frame twice.

A causal layer with a reach of k frames, fed frames that are all alike from frame s on, gives
frames that are all alike from frame s + k on. So each layer is run on the beginning of its
input, up to where it has settled, and the rest is known. Exact: only repeated work is left out.
Inputs: the layers of the encoder, one picture. Outputs: the moments of the whole still video.
Invariant: at most 1 + 2 · (number of convolutions so far) frames exist at full frame rate.

Shape suffixes: B batch (1), C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcast.models.vae_blocks import (
    CausalConv3d,
    Downsample,
    ResidualBlock,
    frames_of,
    video_of,
)
from lipcast.models.vae_receptive import settled_by_conv, settled_by_halving


@dataclass(frozen=True)
class Settling:
    """A video of `length` frames, all like the last of `head` [B, C, T, H, W] once that ends."""

    head: Tensor
    length: int

    def first(self, count: int) -> Tensor:
        """The first `count` frames, written out."""
        head = self.head
        num_missing = max(0, count - head.shape[2])
        tail = head[:, :, -1:].expand(-1, -1, num_missing, -1, -1)
        return torch.cat([head[:, :, :count], tail], dim=2)

    def with_head(self, head: Tensor) -> Settling:
        return Settling(head, self.length)


def encode_settling(layers: Iterable[nn.Module], image_BCHW: Tensor, num_frames: int) -> Tensor:
    """The moments of a picture repeated `num_frames` times (1 + a multiple of the group)."""
    still = _run(layers, Settling(image_BCHW.unsqueeze(2), num_frames))
    return still.first(still.length)


def _run(layers: Iterable[nn.Module], still: Settling) -> Settling:
    for layer in layers:
        still = _apply(layer, still)
    return still


def _apply(layer: nn.Module, still: Settling) -> Settling:
    """One layer; a layer without a rule here works frame by frame."""
    if isinstance(layer, CausalConv3d):
        return _convolve(layer, still)
    if isinstance(layer, ResidualBlock):
        return _residual(layer, still)
    if isinstance(layer, Downsample):
        return _downsample(layer, still)
    return still.with_head(layer(still.head))


def _convolve(conv: CausalConv3d, still: Settling) -> Settling:
    num_new = settled_by_conv(still.head.shape[2], still.length, conv.num_past)
    frames = still.first(num_new)
    return still.with_head(conv.convolve(torch.cat([conv.no_past(frames), frames], dim=2)))


def _residual(block: ResidualBlock, still: Settling) -> Settling:
    branch = _run(block.residual, still).head
    beside = still.with_head(block.shortcut(still.head))
    return still.with_head(branch + beside.first(branch.shape[2]))


def _downsample(layer: Downsample, still: Settling) -> Settling:
    still = still.with_head(video_of(layer.resample(frames_of(still.head))))
    if not layer.temporal:
        return still
    num_new, length = settled_by_halving(still.head.shape[2], still.length)
    frames = still.first(2 * num_new - 1)
    parts = [frames[:, :, :1]]
    if num_new > 1:
        parts.append(layer.time_conv.convolve(frames))
    return Settling(torch.cat(parts, dim=2), length)
