"""Formats of stored keys and values: as they are, in 8-bit floats, or in 4-bit integers.

Duty: a codec turns numbers into planes, tensors with the same leading axes, and planes into numbers.
Inputs and outputs: x_TNd, T standing for any leading axes. Bytes per token are exactly those of
`planning.sizes.kv_bytes_per_token`. Largest error of one number x of a token's head, before the output
is rounded to its dtype:
    fp8   |x| / 16, and near zero m / 2^18, m being the largest magnitude of the head
    int4  (highest - lowest) / 29 of its group, and m / 2^7, m being the largest magnitude of the group
Embedded model over two windows, PSNR of latents and of frames against a float32 ring: bf16 78 and
59 dB, fp8 60 and 51, int4 50 and 43 (`scripts/soak/kv_precision.py`).

Legend: T tokens, N heads, d head size, G groups of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lipcast.config.precision import KVPrecision
from lipcast.errors import UsageError
from lipcast.models.quant_formats import (
    FP8,
    INT4_GROUP,
    INT4_MAX,
    LEAST_SCALE,
    pack_int4,
    quantise_rows_fp8,
    unpack_int4,
)

_PLAIN_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of the stored form: its shape per token, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes per token."""
        return prod(self.shape) * self.dtype.itemsize


class KVCodec(ABC):
    """One way to store keys or values of `num_heads` heads of size `head_dim`."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        self.num_heads, self.head_dim = num_heads, head_dim

    @property
    @abstractmethod
    def planes(self) -> tuple[Plane, ...]:
        """Planes that are stored, wide items first."""

    @abstractmethod
    def encode(self, x_TNd: Tensor) -> tuple[Tensor, ...]:
        """Return the planes of these numbers; a plane may be the input itself, or of a wider dtype."""

    @abstractmethod
    def decode_into(self, planes: Sequence[Tensor], out_TNd: Tensor) -> None:
        """Write the numbers of these planes to `out_TNd`, in its dtype."""


class PlainCodec(KVCodec):
    """Numbers as they are."""

    def __init__(self, num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(num_heads, head_dim)
        self.dtype = dtype

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("numbers", (self.num_heads, self.head_dim), self.dtype),)

    def encode(self, x_TNd: Tensor) -> tuple[Tensor, ...]:
        return (x_TNd,)

    def decode_into(self, planes: Sequence[Tensor], out_TNd: Tensor) -> None:
        out_TNd.copy_(planes[0])


class Fp8Codec(KVCodec):
    """e4m3 floats with a float32 scale per token and head: x = numbers * scale."""

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (
            Plane("scale", (self.num_heads, 1), torch.float32),
            Plane("numbers", (self.num_heads, self.head_dim), FP8),
        )

    def encode(self, x_TNd: Tensor) -> tuple[Tensor, ...]:
        numbers_TNd, scale_TN1 = quantise_rows_fp8(x_TNd)
        return scale_TN1, numbers_TNd

    def decode_into(self, planes: Sequence[Tensor], out_TNd: Tensor) -> None:
        scale_TN1, numbers_TNd = planes
        out_TNd.copy_(numbers_TNd).mul_(scale_TN1)


class Int4Codec(KVCodec):
    """Integers from 0 to 15 in groups along a head: x = number * scale + minimum.

    Two numbers a byte: the first half of a head in the low bits, the second in the high ones.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.num_groups = -(-head_dim // INT4_GROUP)
        if head_dim % 2 or head_dim % self.num_groups:
            raise UsageError(
                f"int4 keys and values: expected a head size that is even and divides into "
                f"{self.num_groups} equal groups, got {head_dim}; choose fp8"
            )

    @property
    def planes(self) -> tuple[Plane, ...]:
        groups = (self.num_heads, self.num_groups, 1)
        return (
            Plane("scale", groups, torch.bfloat16),
            Plane("minimum", groups, torch.bfloat16),
            Plane("numbers", (self.num_heads, self.head_dim // 2), torch.uint8),
        )

    def encode(self, x_TNd: Tensor) -> tuple[Tensor, ...]:
        groups_TNGg = self._grouped(x_TNd.float())
        lowest, highest = groups_TNGg.aminmax(dim=-1, keepdim=True)
        minimum = lowest.bfloat16()
        scale = (highest - minimum).div_(INT4_MAX).clamp_(min=LEAST_SCALE).bfloat16()
        # Numbers are counted from the rounded minimum in rounded steps: what decoding will see.
        steps = (groups_TNGg - minimum).div_(scale).round_().clamp_(0, INT4_MAX)
        return scale, minimum, pack_int4(steps.flatten(-2))

    def decode_into(self, planes: Sequence[Tensor], out_TNd: Tensor) -> None:
        scale_TNG1, minimum_TNG1, packed = planes
        low, high = out_TNd.chunk(2, dim=-1)
        for half, numbers in zip((low, high), unpack_int4(packed), strict=True):
            half.copy_(numbers)
        out_TNGg, dtype = self._grouped(out_TNd), out_TNd.dtype
        torch.addcmul(minimum_TNG1.to(dtype), out_TNGg, scale_TNG1.to(dtype), out=out_TNGg)

    def _grouped(self, x_TNd: Tensor) -> Tensor:
        groups_TNGg: Tensor = x_TNd.unflatten(-1, (self.num_groups, -1))
        return groups_TNGg


def kv_codec(precision: KVPrecision, *, num_heads: int, head_dim: int) -> KVCodec:
    """Return the codec of a precision. Raises UsageError for a head size that it cannot store."""
    if precision == "fp8":
        return Fp8Codec(num_heads, head_dim)
    if precision == "int4":
        return Int4Codec(num_heads, head_dim)
    return PlainCodec(num_heads, head_dim, _PLAIN_DTYPES[precision])
