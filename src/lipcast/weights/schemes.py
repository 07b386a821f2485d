"""Formats that store the weight of a linear layer in fewer bits.

Input: a float32 matrix [out, in]. Output: its parts, small tensors by name; `dequantise` turns the
parts into a matrix of any float dtype again. All schemes work row by row, once they know what all
rows of a layer share, so that a large layer can be quantised in pieces.

Relative weight error on normally distributed weights (heavy tails, Student's t with 4 degrees):
    fp8  2.7 % (2.6 %)     int8  0.9 % (2.9 %)     int4  8.5 % (11.1 %)     nvfp4  8.7 % (8.6 %)
For int4 the candidates at group 64 were: symmetric 10.8 %, symmetric with searched clipping 9.5 %,
one extreme at -8 9.1 %, minimum and maximum 9.0 %, the 16 quantiles of NF4 9.2 %. Minimum and
maximum drawn in by 5 % and refitted twice by least squares gives 8.5 % (group 128: 9.3 %).
NVFP4 with the largest number of every block on 6 has 9.6 % (9.2 %).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lipcast.config.precision import StoredPrecision
from lipcast.models.quant_formats import (
    FP4_BLOCK,
    FP8,
    FP8_MAX,
    INT4_GROUP,
    INT4_MAX,
    LEAST_SCALE,
    StoredWeight,
    decode_fp4,
    encode_fp4,
    pack_int4,
    row_scale,
    tensor_scale,
    to_fp8,
)

PLAIN_DTYPES: Mapping[StoredPrecision, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)

Parts = dict[str, Tensor]
PartShapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def stored_weight(parts: Mapping[str, Tensor]) -> StoredWeight:
    """Return the parts of a layer as what kernels multiply with."""
    return StoredWeight(
        parts["qweight"], parts["scale"], parts.get("minimum"), parts.get("tensor_scale")
    )


class Scheme(ABC):
    """One way to store a weight. Parts are named `qweight` and what is needed to read it."""

    precision: StoredPrecision
    qweight_dtype: torch.dtype
    has_shared_parts = False
    """Whether all rows of a layer share a part, so that layers cannot be joined row by row."""

    @abstractmethod
    def part_shapes(self, num_out: int, num_in: int) -> PartShapes:
        """Return shape and dtype of every part of a layer [num_out, num_in]."""

    def shared(self, weight: Tensor) -> Parts:
        """Return the parts that all rows share, of a weight [out, in] of any float dtype."""
        del weight
        return {}

    @abstractmethod
    def quantise(self, weight: Tensor, shared: Mapping[str, Tensor] | None = None) -> Parts:
        """Return the parts of a float32 weight [out, in]; rows do not influence each other.

        `shared`: what the whole weight's rows share, if these are some of them.
        """

    def dequantise(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the dequantised weight [out, in]."""
        return stored_weight(parts).restore(dtype)

    def fits(self, num_in: int) -> bool:
        """Return whether rows of this length can be stored."""
        return num_in > 0


class _RowScheme(Scheme):
    """One float32 scale per output row: weight = qweight * scale."""

    largest: float

    def part_shapes(self, num_out: int, num_in: int) -> PartShapes:
        return {
            "qweight": ((num_out, num_in), self.qweight_dtype),
            "scale": ((num_out,), torch.float32),
        }

    def quantise(self, weight: Tensor, shared: Mapping[str, Tensor] | None = None) -> Parts:
        del shared
        scale = row_scale(weight, self.largest)
        return {"qweight": self._round(weight / scale), "scale": scale.squeeze(1)}

    @abstractmethod
    def _round(self, scaled: Tensor) -> Tensor:
        """Return the nearest stored numbers; the argument may be overwritten."""


class Fp8Scheme(_RowScheme):
    """e4m3 floats, 1 byte a weight."""

    precision: StoredPrecision = "fp8"
    qweight_dtype = FP8
    largest = FP8_MAX

    def _round(self, scaled: Tensor) -> Tensor:
        return to_fp8(scaled)


class Int8Scheme(_RowScheme):
    """Integers from -127 to 127, 1 byte a weight."""

    precision: StoredPrecision = "int8"
    qweight_dtype = torch.int8
    largest = 127.0

    def _round(self, scaled: Tensor) -> Tensor:
        return scaled.round_().clamp_(-self.largest, self.largest).to(self.qweight_dtype)


class Int4Scheme(Scheme):
    """Integers from 0 to 15 in groups along a row, two in a byte: weight = q * scale + minimum.

    The first half of a group lies in the low, the second half in the high four bits. With groups of
    64 and bf16 for scale and minimum a weight takes 4.5 bits.
    """

    precision: StoredPrecision = "int4"
    qweight_dtype = torch.uint8
    _shrink = 0.95
    _num_refits = 2

    def fits(self, num_in: int) -> bool:
        return num_in > 0 and num_in % 2 == 0

    def group(self, num_in: int) -> int:
        """Return the weights per group: 64, or the largest power of two that divides a short row."""
        return min(INT4_GROUP, num_in & -num_in)

    def part_shapes(self, num_out: int, num_in: int) -> PartShapes:
        num_groups = num_in // self.group(num_in)
        return {
            "qweight": ((num_out, num_in // 2), torch.uint8),
            "scale": ((num_out, num_groups), torch.bfloat16),
            "minimum": ((num_out, num_groups), torch.bfloat16),
        }

    def quantise(self, weight: Tensor, shared: Mapping[str, Tensor] | None = None) -> Parts:
        del shared
        grouped = weight.reshape(len(weight), -1, self.group(weight.shape[1]))
        scale, minimum = self._first_range(grouped)
        q = _round_to_range(grouped, scale, minimum)
        for _ in range(self._num_refits):
            scale, minimum = _refit(grouped, q, scale)
            q = _round_to_range(grouped, scale, minimum)
        return {
            "qweight": pack_int4(q).flatten(1),
            "scale": scale.squeeze(-1),
            "minimum": minimum.squeeze(-1),
        }

    def _first_range(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.aminmax(grouped, dim=-1, keepdim=True)
        middle, half = (low + high) / 2, (high - low) / 2 * self._shrink
        return (half / 7.5).clamp_(min=LEAST_SCALE).bfloat16(), (middle - half).bfloat16()


def _round_to_range(grouped: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return grouped.sub(minimum.float()).div_(scale.float()).round_().clamp_(0, INT4_MAX)


def _refit(grouped: Tensor, q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and minimum with the least squared error for the given integers."""
    q_mean, mean = q.mean(-1, keepdim=True), grouped.mean(-1, keepdim=True)
    covariance = (q * grouped).mean(-1, keepdim=True) - q_mean * mean
    variance = q.square().mean(-1, keepdim=True) - q_mean.square()
    fitted = covariance / variance.clamp(min=LEAST_SCALE)
    # All weights of a group on one integer determine no slope, rounding may even turn it negative.
    fitted = torch.where((variance > 1e-3) & (fitted > 0), fitted, scale.float()).bfloat16()
    return fitted, (mean - fitted.float() * q_mean).bfloat16()


class NvFp4Scheme(Scheme):
    """NVFP4: e2m1 floats, two neighbours in a byte; an e4m3 scale per 16, one float32 scale.

    As it lies in memory it is the operand of Blackwell's matrix units. Of the scales of a block that map its
    largest magnitude to 4, 5, 6 or 7 the one with the least squared error is taken. 4.5 bits a weight.
    """

    precision: StoredPrecision = "nvfp4"
    qweight_dtype = torch.uint8
    has_shared_parts = True
    _peaks_at = (6.0, 4.0, 5.0, 7.0)

    def fits(self, num_in: int) -> bool:
        return num_in > 0 and num_in % FP4_BLOCK == 0

    def part_shapes(self, num_out: int, num_in: int) -> PartShapes:
        return {
            "qweight": ((num_out, num_in // 2), torch.uint8),
            "scale": ((num_out, num_in // FP4_BLOCK), FP8),
            "tensor_scale": ((1,), torch.float32),
        }

    def shared(self, weight: Tensor) -> Parts:
        return {"tensor_scale": tensor_scale(weight, min(self._peaks_at))}

    def quantise(self, weight: Tensor, shared: Mapping[str, Tensor] | None = None) -> Parts:
        of_all = (shared or self.shared(weight))["tensor_scale"]
        found: tuple[Tensor, Tensor, Tensor] | None = None
        for peak_at in self._peaks_at:
            numbers, scale = encode_fp4(weight, of_all, peak_at=peak_at)
            error = decode_fp4(numbers, scale, of_all, torch.float32).sub_(weight).square_()
            new = numbers.unflatten(1, (-1, 8)), scale, error.unflatten(1, (-1, FP4_BLOCK)).sum(-1)
            found = new if found is None else _less_wrong(new, found)
        assert found is not None
        return {"qweight": found[0].flatten(1), "scale": found[1], "tensor_scale": of_all}


def _less_wrong(
    new: tuple[Tensor, Tensor, Tensor], old: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each block the numbers, scale and error of those whose error is smaller."""
    is_better = new[2] < old[2]
    scale = torch.where(is_better, new[1].view(torch.uint8), old[1].view(torch.uint8)).view(FP8)
    return (
        torch.where(is_better[..., None], new[0], old[0]), scale, torch.minimum(new[2], old[2])
    )  # fmt: skip


SCHEMES: Mapping[StoredPrecision, Scheme] = MappingProxyType(
    {
        scheme.precision: scheme
        for scheme in (Fp8Scheme(), Int8Scheme(), Int4Scheme(), NvFp4Scheme())
    }
)


def scheme_of(qweight_dtype: torch.dtype, part_names: Collection[str] = ()) -> Scheme | None:
    """Return the scheme whose `qweight` has this dtype; of several, the one with these parts."""
    found = [scheme for scheme in SCHEMES.values() if scheme.qweight_dtype == qweight_dtype]
    fitting = [s for s in found if s.part_shapes(FP4_BLOCK, FP4_BLOCK).keys() <= {*part_names}]
    return next(iter(fitting or found), None)
