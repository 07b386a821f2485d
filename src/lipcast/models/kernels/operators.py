"""The fused kernels as operators of PyTorch, `torch.ops.lipcast`.

Every operator is one launch. On fake tensors it gives shapes and dtypes, so that whatever counts or
traces operators sees it whole. Tensors are contiguous; planes of a ring are so from token to token, with
any stride from position to position. Rows come back as (numbers, scales), scales being empty where
numbers are not quantised.

Legend: T tokens, D model width, N heads, d head size, W positions of a ring, S tokens per latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lipcast.models.kernels.register import Operator, register_operators
from lipcast.models.quant_formats import FP4_BLOCK, FP8

_SCHEMAS = {
    "add": "(Tensor x, Tensor branch, Tensor? gate) -> Tensor",
    "normalise": "(Tensor x, Tensor weight, Tensor bias, bool modulates, float eps,"
    " ScalarType dtype, bool fp8) -> (Tensor, Tensor)",
    "add_normalise": "(Tensor x, Tensor branch, Tensor? gate, Tensor weight, Tensor bias,"
    " bool modulates, float eps, ScalarType dtype, bool fp8) -> (Tensor, Tensor, Tensor)",
    "quantise_rows": "(Tensor x, bool gelu) -> (Tensor, Tensor)",
    "quantise_fp4": "(Tensor x, Tensor tensor_scale) -> (Tensor, Tensor)",
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "rotate_and_write": "(Tensor q, Tensor k, Tensor v, Tensor? weight_q, Tensor? weight_k, float eps,"
    " Tensor cos, Tensor sin, Tensor(a!) q_out, Tensor(b!)[] keys, Tensor(c!)[] values) -> ()",
    "join_keys_values": "(Tensor[] keys, Tensor[] values, Tensor ref_keys, Tensor motion_keys,"
    " Tensor sink_values, ScalarType dtype) -> (Tensor, Tensor)",
    "attend_segments": "(Tensor q, Tensor[] keys, Tensor[] values, Tensor ref_keys,"
    " Tensor motion_keys, Tensor sink_values) -> Tensor",
    "merge_parts": "(Tensor[] outputs, Tensor[] lse) -> Tensor",
}
"""Operators write to what they are given to write to, and do not read it."""
_LOG2_E = 1.4426950408889634
_MAX_WARPS = 16
_VALUES_PER_WARP = 512
_FP8_INSTRUCTIONS = (8, 9)
_FP4_PIECE = 1024
"""Numbers that one program quantises to NVFP4, whose blocks do not depend on one another."""
_LEAST_SIDE = 16
"""Tensor cores multiply no narrower matrices."""


def add(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """Return x + gate * branch, float32; gate [G, 1, D]."""
    total = torch.empty_like(x)
    _residual_norm(x, branch, gate, total, None, _no_rows(x))
    return total


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulates: bool,
    eps: float,
    dtype: torch.dtype,
    fp8: bool,
) -> tuple[Tensor, Tensor]:
    """Return rows of LayerNorm(x) * weight + bias; both [D], or [G, 1, D] with the weight from 1."""
    rows = _new_rows(x, dtype, fp8)
    _residual_norm(x, None, None, None, (weight, bias, modulates, eps, dtype), rows)
    return rows


def add_normalise(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    modulates: bool,
    eps: float,
    dtype: torch.dtype,
    fp8: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `add` does, and what `normalise` makes of it."""
    total, rows = torch.empty_like(x), _new_rows(x, dtype, fp8)
    _residual_norm(x, branch, gate, total, (weight, bias, modulates, eps, dtype), rows)
    return total, *rows


def _residual_norm(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    total: Tensor | None,
    norm: tuple[Tensor, Tensor, bool, float, torch.dtype] | None,
    rows: tuple[Tensor, Tensor],
) -> None:
    frames, tokens, dim = x.shape
    weight, bias, modulates, eps, dtype = norm or (x, x, False, 0.0, x.dtype)
    numbers, scales = rows
    _code().residual_norm[(frames * tokens,)](
        x, _or(branch, x), _or(gate, x), _or(total, x), weight, bias, _bytes(numbers), scales,
        tokens, 0 if gate is None else gate.stride(0), weight.stride(0) if modulates else 0, dim, eps,
        ADDS=branch is not None, GATED=gate is not None, NORMS=norm is not None, MODULATES=modulates,
        FP8=numbers.dtype == FP8, DTYPE=_triton_dtype(dtype), **_row_block(dim),
    )  # fmt: skip


def quantise_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Return x, or GELU(x), as rows of 8-bit floats."""
    numbers, scales = _new_rows(x, x.dtype, True)
    dim = x.shape[-1]
    _code().quantise_rows[(x.numel() // dim,)](
        x, _bytes(numbers), scales, dim, GELU=gelu, **_row_block(dim)
    )
    return numbers, scales


def quantise_fp4(x: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers and block scales of x [..., D] in NVFP4."""
    numbers, scales = _new_fp4(x)
    total, block = x.numel(), _row_block(_FP4_PIECE)
    _code().quantise_fp4[(-(-total // _FP4_PIECE),)](
        x, numbers, _bytes(scales), tensor_scale, total, **block
    )
    return numbers, scales


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis."""
    out, dim = torch.empty_like(x), x.shape[-1]
    _code().rms_norm[(x.numel() // dim,)](x, weight, out, dim, eps, **_row_block(dim))
    return out


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    q_out: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
) -> None:
    """Norm and rotate q and k [T, N, d]; write q to `q_out`, k and v to planes of a ring [W, S, ...].

    Rows of q, k and v are contiguous, with one stride from row to row.
    """
    tokens, heads, head_dim = q.shape
    _code().rotate_and_write[(tokens, 3)](
        q, k, v, _or(weight_q, q), _or(weight_k, q), cos, sin, q_out, *_planes(keys), *_planes(values),
        keys[-1].shape[1], *_strides(keys), q.stride(0), heads * head_dim, eps,
        HEAD=head_dim, GROUPS=_groups(keys),
        PLANES=len(keys), NORMS=weight_q is not None, **_row_block(heads * head_dim),
    )  # fmt: skip


def join_keys_values(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ref_keys: Tensor,
    motion_keys: Tensor,
    sink_values: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return keys and values [T, N, d] of the filled positions of a ring, then of a sink."""
    k_out, v_out = _joined(keys, values, ref_keys, motion_keys, sink_values, dtype)
    tokens, heads, head_dim = k_out.shape
    num_ring = tokens - sink_values.shape[0]
    _code().join_keys_values[(tokens, 2)](
        *_planes(keys), *_planes(values), ref_keys, motion_keys, sink_values, k_out, v_out,
        num_ring, ref_keys.shape[0], keys[-1].shape[1], *_strides(keys), heads * head_dim,
        HEAD=head_dim, GROUPS=_groups(keys), PLANES=len(keys), **_row_block(heads * head_dim),
    )  # fmt: skip
    return k_out, v_out


def attend_segments(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ref_keys: Tensor,
    motion_keys: Tensor,
    sink_values: Tensor,
) -> Tensor:
    """Return the attention of q [T, N, d] to the filled positions of a ring and to a sink, read in place."""
    out = torch.empty_like(q)
    tokens, heads, head_dim = q.shape
    native, block = has_fp8_instructions(q.device), attention_block(len(keys))
    kernel = getattr(_attention(), attention_kernel(head_dim, _groups(keys), len(keys)))
    kernel[(-(-tokens // block["BLOCK_Q"]), heads)](
        q, *_planes(keys, native=native), *_planes(values, native=native),
        ref_keys, motion_keys, sink_values, out,
        tokens, keys[-1].shape[0] * keys[-1].shape[1], ref_keys.shape[0], motion_keys.shape[0],
        keys[-1].shape[1], *_strides(keys), heads * head_dim, head_dim**-0.5 * _LOG2_E,
        HEAD=head_dim, GROUPS=_groups(keys), PLANES=len(keys),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", enable_fp_fusion=True, **block,
    )  # fmt: skip
    return out


def merge_parts(outputs: Sequence[Tensor], lse: Sequence[Tensor]) -> Tensor:
    """Return the attention to all keys from that to one, two or three parts: [T, N, d], and [N, T]."""
    merged = torch.empty_like(outputs[0])
    tokens, heads, head_dim = merged.shape
    first, second, third = (*zip(outputs, lse, strict=True), *[(outputs[0], lse[0])] * 2)[:3]
    _code().merge_parts[(tokens,)](
        *first, *second, *third, merged, tokens, heads * head_dim,
        HEAD=head_dim, PARTS=len(outputs), **_row_block(heads * head_dim),
    )  # fmt: skip
    return merged


_STRICT = {"enable_fp_fusion": False}
"""Multiply and add round apart, as in the plain twin; kernels that wait for memory lose nothing."""


def attention_block(num_planes: int) -> dict[str, int]:
    """Return how attention is cut up: what fits registers and 99 KiB of shared memory everywhere."""
    if num_planes == 1:
        return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


def row_block(dim: int) -> dict[str, int]:
    """Return how a program takes a row of `dim` numbers: its block, and its warps."""
    block = max(16, 1 << (dim - 1).bit_length())
    return {
        "BLOCK": block,
        "num_warps": min(_MAX_WARPS, max(1, block // _VALUES_PER_WARP)),
        **_STRICT,
    }


_row_block = cache(row_block)


@cache
def _code() -> Any:
    from lipcast.models.kernels import triton_code

    return triton_code


@cache
def _attention() -> Any:
    from lipcast.models.kernels import attention_triton

    return attention_triton


def attention_kernel(head_dim: int, groups: int, num_planes: int) -> str:
    """Return the function that attends to a ring stored so."""
    halves_fit = head_dim // 2 >= _LEAST_SIDE and groups <= 2
    return "attend_packed" if num_planes == 3 and halves_fit else "attend_segments"


@cache
def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


@cache
def has_fp8_instructions(device: torch.device) -> bool:
    """Return whether a GPU converts 8-bit floats by itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_INSTRUCTIONS


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for an argument that the kernel does not touch."""
    return other if tensor is None else tensor


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.view(torch.uint8) if numbers.dtype == FP8 else numbers


def _planes(planes: Sequence[Tensor], *, native: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales and minima of keys or values; 8-bit floats as bytes unless `native`."""
    *ranges, numbers = planes
    scale, minimum = (*ranges, *[numbers] * 2)[:2]
    return numbers if native else _bytes(numbers), scale, minimum


def _strides(planes: Sequence[Tensor]) -> tuple[int, int]:
    """From position to position: of the numbers, and of their scales."""
    return planes[-1].stride(0), planes[0].stride(0)


def _groups(planes: Sequence[Tensor]) -> int:
    """Scales per head."""
    return planes[0].shape[3] if len(planes) > 2 else 1


def _no_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


def _new_rows(x: Tensor, dtype: torch.dtype, fp8: bool) -> tuple[Tensor, Tensor]:
    numbers = torch.empty_like(x, dtype=FP8 if fp8 else dtype)
    return numbers, x.new_empty((*x.shape[:-1], 1) if fp8 else (0,), dtype=torch.float32)


def _new_fp4(x: Tensor) -> tuple[Tensor, Tensor]:
    *rows, dim = x.shape
    numbers = x.new_empty((*rows, dim // 2), dtype=torch.uint8)
    return numbers, x.new_empty((*rows, dim // FP4_BLOCK), dtype=FP8)


def _joined(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ref_keys: Tensor,
    motion_keys: Tensor,
    sink_values: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    del values, motion_keys
    num_ring = keys[-1].shape[0] * keys[-1].shape[1]
    shape = (num_ring + sink_values.shape[0], *ref_keys.shape[1:])
    return ref_keys.new_empty(shape, dtype=dtype), ref_keys.new_empty(shape, dtype=dtype)


def _fake_add_normalise(
    x: Tensor, branch: Tensor, gate: Any, weight: Any, bias: Any, *norm: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del branch, gate, weight, bias
    dtype, fp8 = norm[-2:]
    return torch.empty_like(x), *_new_rows(x, dtype, fp8)


_OPERATORS: dict[str, Operator] = {
    "add": (add, lambda x, *_: torch.empty_like(x)),
    "normalise": (normalise, lambda x, *norm: _new_rows(x, *norm[-2:])),
    "add_normalise": (add_normalise, _fake_add_normalise),
    "quantise_rows": (quantise_rows, lambda x, _: _new_rows(x, x.dtype, True)),
    "quantise_fp4": (quantise_fp4, lambda x, _: _new_fp4(x)),
    "rms_norm": (rms_norm, lambda x, *_: torch.empty_like(x)),
    "rotate_and_write": (rotate_and_write, lambda *_: None),
    "join_keys_values": (join_keys_values, _joined),
    "attend_segments": (attend_segments, lambda q, *_: torch.empty_like(q)),
    "merge_parts": (merge_parts, lambda outputs, _: torch.empty_like(outputs[0])),
}

register_operators(_OPERATORS, _SCHEMAS)
