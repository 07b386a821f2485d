"""Small pieces that several networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, times a weight; statistics in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).to(x.dtype)


def layer_norm32(x: Tensor, eps: float) -> Tensor:
    """Apply LayerNorm without weight and bias over the last axis, in float32."""
    return functional.layer_norm(x.float(), x.shape[-1:], eps=eps)


def linear32(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in float32, whatever its weights are stored in."""
    return functional.linear(x.float(), linear.weight.float(), linear.bias.float())


def conv32(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a strided convolution in float32, whatever its weights are stored in."""
    bias = None if conv.bias is None else conv.bias.float()
    return functional.conv3d(x.float(), conv.weight.float(), bias, stride=conv.stride)


class AttentionProjections(nn.Module):
    """What every attention of the model has: q, k, v, o, and RMS norms over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def queries(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., N, d]; the norm comes before the split into heads."""
        heads: Tensor = self.norm_q(self.q(x)).unflatten(-1, (self.num_heads, -1))
        return heads

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] -> keys and values [..., N, d]."""
        keys: Tensor = self.norm_k(self.k(x)).unflatten(-1, (self.num_heads, -1))
        values: Tensor = self.v(x).unflatten(-1, (self.num_heads, -1))
        return keys, values

    def output(self, heads: Tensor) -> Tensor:
        """[..., N, d] -> [..., D]."""
        merged: Tensor = self.o(heads.flatten(-2))
        return merged
