"""The number formats that quantised weights, keys and values share.

Duty: 8-bit floats (e4m3) with a scale per row, two 4-bit integers per byte, and NVFP4: 4-bit floats
(e2m1) with an e4m3 scale per block and one float32 scale. What a row is, and how a range is chosen, is
the matter of the weight schemes and of the KV codecs.

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
FP4_MAX = 6.0
"""The largest e2m1 number; the others are 0, 0.5, 1, 1.5, 2, 3 and 4."""
FP4_BLOCK = 16
"""Numbers of a row that share an e4m3 scale in NVFP4."""


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


@dataclass(frozen=True, slots=True)
class Fp4Rows:
    """Numbers [..., D] in NVFP4: number = e2m1 * block scale * tensor scale; `dtype` as before."""

    numbers: Tensor
    """uint8 [..., D / 2]: of two neighbours the first in the low bits."""
    scale: Tensor
    """e4m3 [..., D / 16]."""
    tensor_scale: Tensor
    """float32 [1]."""
    dtype: torch.dtype

    def restore(self) -> Tensor:
        """Return the numbers in their former dtype."""
        return decode_fp4(self.numbers, self.scale, self.tensor_scale, self.dtype)


Rows = Tensor | QuantisedRows | Fp4Rows
"""Input of a linear layer: plain, or quantised."""


def quantise_rows(x: Tensor) -> QuantisedRows:
    """Return x [..., D] as rows of 8-bit floats."""
    return QuantisedRows(*quantise_rows_fp8(x), x.dtype)


def quantise_rows_fp4(x: Tensor) -> Fp4Rows:
    """Return x [..., D] in NVFP4, D being a multiple of 16."""
    scale = tensor_scale(x)
    return Fp4Rows(*encode_fp4(x, scale), scale, x.dtype)


def tensor_scale(x: Tensor, peak_at: float = FP4_MAX) -> Tensor:
    """Return the float32 scale [1] with which the largest block scale is the largest e4m3 number.

    `peak_at`: what `encode_fp4` maps the largest magnitude of a block to.
    """
    if not x.numel():
        return x.new_full((1,), LEAST_SCALE, dtype=torch.float32)
    peak: Tensor = torch.linalg.vector_norm(x, torch.inf).float().reshape(1)
    return peak.div_(peak_at * FP8_MAX).clamp_(min=LEAST_SCALE)


def encode_fp4(
    x: Tensor, tensor_scale: Tensor, *, peak_at: float = FP4_MAX
) -> tuple[Tensor, Tensor]:
    """Return the e2m1 numbers [..., D / 2] and block scales [..., D / 16] of x [..., D].

    Ties go to the even number, as in hardware. A block whose scale is 0 is all zeros.
    """
    blocks = x.float().unflatten(-1, (-1, FP4_BLOCK))
    peak: Tensor = blocks.abs().amax(dim=-1)
    scale = to_fp8(peak / (peak_at * tensor_scale))
    step = (scale.float() * tensor_scale)[..., None]
    scaled = torch.where(step > 0, blocks / step, 0.0)
    size = scaled.abs().clamp_(max=FP4_MAX)
    code = torch.where(
        size < 2,
        (2 * size).round(),
        torch.where(size < 4, size.round() + 2, (size / 2).round() + 4),
    )
    code = code.to(torch.uint8) | (scaled.signbit().to(torch.uint8) << 3)
    first, second = code.flatten(-2).unflatten(-1, (-1, 2)).unbind(-1)
    return first | (second << 4), scale


def decode_fp4(numbers: Tensor, scale: Tensor, tensor_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `encode_fp4` stored; e2m1 times e4m3 is exact, and then rounded once."""
    codes = torch.arange(256, dtype=torch.int16, device=numbers.device)
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1)
    # The same bits as a float16 are 2**-14 of the number, subnormals included.
    halves = ((pairs & 7) << 9) | ((pairs & 8) << 12)
    table = halves.view(torch.float16).to(dtype).mul_(2.0**14)
    values = table.index_select(0, numbers.flatten().int()).view(*scale.shape, FP4_BLOCK)
    return values.mul_(scale.to(dtype)[..., None]).mul_(tensor_scale).flatten(-2)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight [O, D] of a linear layer in fewer bits: weight = number * scale (+ minimum).

    Numbers of 8 bits [O, D] (e4m3 or integers) have a float32 scale [O] per row. Integers of 4 bits, two
    in a byte [O, D / 2], have scale and minimum [O, groups] in bf16; the first half of a group lies in
    the low bits. NVFP4 has a `tensor_scale`, and otherwise the parts of `Fp4Rows`.
    """

    numbers: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    tensor_scale: Tensor | None = None

    @property
    def num_in(self) -> int:
        """Numbers of a row."""
        return self.numbers.shape[1] * (2 if self.group else 1)

    @property
    def group(self) -> int:
        """Numbers of a row that share a scale of 4-bit numbers; 0 where each has 8 bits."""
        if self.minimum is None and self.tensor_scale is None:
            return 0
        return 2 * self.numbers.shape[1] // self.scale.shape[1]

    def restore(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in a float dtype."""
        if self.tensor_scale is not None:
            return decode_fp4(self.numbers, self.scale, self.tensor_scale, dtype)
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
