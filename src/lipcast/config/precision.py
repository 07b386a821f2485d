"""Precisions of weights and of the KV cache."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "bf16", "fp8", "int8", "int4", "nvfp4"]
"""Precision of the transformer's weights. With fp32 and bf16 everything computes in it."""
PlainPrecision = Literal["fp32", "bf16"]
"""Precision of what is not quantised."""
StoredPrecision = Precision | Literal["fp16"]
"""Precision that weights can have in a file."""
KVPrecision = Literal["fp32", "bf16", "fp8", "int4"]
"""Precision of the KV cache."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
KV_PRECISIONS: tuple[KVPrecision, ...] = get_args(KVPrecision)


def plain_precision(precision: Precision) -> PlainPrecision:
    """Return the precision of what is not quantised, beside weights of this precision."""
    return "fp32" if precision == "fp32" else "bf16"
