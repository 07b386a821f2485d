"""Products with weights that are stored in 8 or 4 bits, as one operator, `torch.ops.lipcast`.

The weight is read as it lies in memory, and restored tile by tile in registers; no whole layer is. Sums are
float32 and rounded once. Numbers are restored with the roundings of `StoredWeight.restore`, so that the
operator differs from its plain twin by the order of sums only. On fake tensors it gives shapes.

Legend: T tokens, O outputs, D inputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lipcast.models.kernels.operators import has_fp8_instructions
from lipcast.models.kernels.register import register_operators
from lipcast.models.quant_formats import FP8, StoredWeight

_LEAST_DEPTH = 16
"""Tensor cores multiply no narrower tiles: half a group of 4-bit numbers."""
_FEW_TOKENS = 64
_FUSION = {"enable_fp_fusion": True}
WIDE = {"BLOCK_T": 128, "BLOCK_O": 128, "num_warps": 8, "num_stages": 3, **_FUSION}
NARROW = {"BLOCK_T": 32, "BLOCK_O": 64, "num_warps": 4, "num_stages": 4, **_FUSION}
"""How a product is cut up, with many tokens and with few: for registers and 99 KiB of shared memory."""


def has_whole_groups(weight: StoredWeight) -> bool:
    """Return whether the operator multiplies this weight: 4-bit groups must fill the narrowest tile."""
    return weight.group == 0 or weight.group // 2 >= _LEAST_DEPTH


def stored_linear(
    x: Tensor, numbers: Tensor, scale: Tensor, minimum: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return x [..., D] times a `StoredWeight` [O, D], plus bias [O], in the dtype of x."""
    out = _shape(x, numbers)
    outputs, dim = numbers.shape[0], x.shape[-1]
    tokens = x.numel() // dim
    if tokens == 0:
        return out
    block = block_of(tokens)
    programs = -(-tokens // block["BLOCK_T"]) * -(-outputs // block["BLOCK_O"])
    _code().stored_linear[(programs,)](
        x, _readable(numbers), scale,
        scale if minimum is None else minimum, x if bias is None else bias, out,
        tokens, outputs, dim, HAS_BIAS=bias is not None,
        **constants(StoredWeight(numbers, scale, minimum), x.dtype), **block,
    )  # fmt: skip
    return out


def _readable(numbers: Tensor) -> Tensor:
    """Return 8-bit floats as bytes for a device without instructions that read them."""
    native = numbers.dtype != FP8 or has_fp8_instructions(numbers.device)
    return numbers if native else numbers.view(torch.uint8)


def block_of(tokens: int) -> dict[str, int]:
    """Return how a product with so many tokens is cut up."""
    return NARROW if tokens <= _FEW_TOKENS else WIDE


def constants(weight: StoredWeight, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the kernel is compiled for, of one kind of weight."""
    depth = weight.group // 2 if weight.group else 64
    # Numbers of 16 bits are multiplied exactly; float32, which only tests use, is not rounded to tf32.
    precision = "ieee" if dtype == torch.float32 else "tf32"
    is_float = weight.numbers.dtype == FP8
    return {"GROUP": weight.group, "E4M3": is_float, "DEPTH": depth, "PRECISION": precision}


def _shape(x: Tensor, numbers: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], numbers.shape[0])


@cache
def _code() -> Any:
    from lipcast.models.kernels import stored_linear_triton

    return stored_linear_triton


register_operators(
    {"stored_linear": (stored_linear, _shape)},
    {
        "stored_linear": "(Tensor x, Tensor numbers, Tensor scale, Tensor? minimum, Tensor? bias)"
        " -> Tensor"
    },
)
