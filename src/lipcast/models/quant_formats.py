"""The number formats that quantised weights, keys and values share.

Duty: 8-bit floats (e4m3) with a scale per row, and two 4-bit integers per byte. What a row is, and
how a range is chosen, is the matter of the weight schemes and of the KV codecs.

Legend: D the last axis, along which a row lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest e4m3 number."""
INT4_MAX = 15
INT4_GROUP = 64
"""Numbers of a row that share a scale and a minimum."""
LEAST_SCALE = 1e-12
"""Keeps rows of zeros from dividing by zero."""


def row_scale(x: Tensor, largest: float) -> Tensor:
    """Return the float32 scale [..., 1] that maps the largest magnitude of a row to `largest`."""
    peak: Tensor = x.abs().amax(dim=-1, keepdim=True).float()
    return peak.div_(largest).clamp_(min=LEAST_SCALE)


def to_fp8(scaled: Tensor) -> Tensor:
    """Round to e4m3, in place up to the cast.

    Dividing by a scale may round up past the largest number, which e4m3 turns into NaN.
    """
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(FP8)


def quantise_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (e4m3 [..., D], float32 scale [..., 1]) with x = q * scale."""
    scale = row_scale(x, FP8_MAX)
    return to_fp8(x / scale), scale


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Numbers [..., D] as 8-bit floats with a scale per row; `dtype` is what they were before."""

    numbers: Tensor
    scale: Tensor
    """float32 [..., 1]."""
    dtype: torch.dtype

    def restore(self) -> Tensor:
        """Return the numbers in their former dtype."""
        return (self.numbers.float() * self.scale).to(self.dtype)


Rows = Tensor | QuantisedRows
"""Input of a linear layer: plain, or quantised by row."""


def quantise_rows(x: Tensor) -> QuantisedRows:
    """Return x [..., D] as rows of 8-bit floats."""
    return QuantisedRows(*quantise_rows_fp8(x), x.dtype)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight [O, D] of a linear layer in fewer bits: weight = number * scale (+ minimum).

    Numbers of 8 bits [O, D] (e4m3 or integers) have a float32 scale [O] per row. Integers of 4 bits, two
    in a byte [O, D / 2], have scale and minimum [O, groups] in bf16; the first half of a group lies in
    the low bits.
    """

    numbers: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    @property
    def group(self) -> int:
        """Numbers of a row that share a 4-bit scale; 0 where each has 8 bits."""
        if self.minimum is None:
            return 0
        return 2 * self.numbers.shape[1] // self.scale.shape[1]

    def restore(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in a float dtype."""
        if self.minimum is None:
            return self.numbers.to(dtype).mul_(self.scale[:, None])
        scale = self.scale.to(dtype)[..., None]
        packed = self.numbers.view(*scale.shape[:2], -1)
        numbers = torch.cat(unpack_int4(packed), dim=-1).to(dtype)
        return numbers.mul_(scale).add_(self.minimum.to(dtype)[..., None]).flatten(1)


def pack_int4(numbers: Tensor) -> Tensor:
    """Pack integers from 0 to 15: the first half of the last axis in the low bits."""
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def unpack_int4(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half of what `pack_int4` packed."""
    return packed & INT4_MAX, packed >> 4
