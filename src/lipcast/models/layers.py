"""Small pieces that several networks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.models.quant_formats import Rows


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


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return tensors joined along their first axis, as a view; None where they do not lie so in memory."""
    first = tensors[0]
    storage, end, rows = first.untyped_storage()._cdata, first.storage_offset(), 0
    for tensor in tensors:
        follows = tensor.untyped_storage()._cdata == storage and tensor.storage_offset() == end
        alike = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:]
        if not (follows and alike and tensor.is_contiguous()):
            return None
        end, rows = end + tensor.numel(), rows + tensor.shape[0]
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def joined_product(linears: Sequence[nn.Module], x: Rows) -> Tensor | None:
    """Return what the linear layers make of x, side by side, by one product.

    None where their weights do not lie side by side in memory, or differ in format.
    """
    first = linears[0]
    if not isinstance(first, nn.Linear):  # a stored weight knows its parts
        joined = getattr(first, "joined_product", None)
        return None if joined is None else cast("Tensor | None", joined(linears, x))
    plain = [each for each in linears if isinstance(each, nn.Linear) and each.bias is not None]
    if len(plain) < len(linears) or not isinstance(x, Tensor):
        return None
    weight = side_by_side([linear.weight for linear in plain])
    bias = side_by_side([linear.bias for linear in plain])
    return None if weight is None or bias is None else functional.linear(x, weight, bias)


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

    def queries_keys_values(self, x: Rows, *, joined: bool) -> tuple[Tensor, ...]:
        """Project [..., D] to queries, keys and values [..., D], before any norm.

        `joined`: by one product if possible; they are then parts of one tensor, with a stride of rows.
        """
        linears = (self.q, self.k, self.v)
        together = joined_product(linears, x) if joined else None
        return tuple(linear(x) for linear in linears) if together is None else together.chunk(3, -1)

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
