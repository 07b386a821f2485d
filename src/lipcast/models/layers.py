"""Small pieces that several networks share."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Projections of an attention (q, k, v, o), and RMS norms over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    @property
    def norms(self) -> QueryKeyNorms:
        return QueryKeyNorms(self.norm_q, self.norm_k)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project [..., D] to keys and values [..., N, d]; the norm comes before the split into heads."""
        return self.heads(self.norm_k(self.k(x))), self.heads(self.v(x))

    def heads(self, x: Tensor) -> Tensor:
        """Reshape [..., D] to [..., N, d]."""
        split: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return split


@dataclass(frozen=True, slots=True)
class QueryKeyNorms:
    """The norms of queries and keys [..., N, d] over all heads together."""

    queries: RMSNorm
    keys: RMSNorm

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed queries and keys."""
        return (
            self.queries(q.flatten(-2)).view_as(q),
            self.keys(k.flatten(-2)).view_as(k),
        )
