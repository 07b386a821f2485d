"""The product with a stored weight, in Triton.

A program computes a tile of outputs for a tile of tokens: the weight is the left operand, which tensor cores
of Hopper take from registers, where its numbers are restored. A step goes through one group of 4-bit
numbers, whose halves lie in the low and in the high bits of the same bytes, or through DEPTH numbers of 8
bits.

Imported only where Triton is installed and used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lipcast.models.kernels.triton_code import decode_e4m3

_TOGETHER = tl.constexpr(8)
"""Tiles of tokens that are computed with a weight before the next part of it is read."""


@triton.jit(do_not_specialize=["tokens"])
def stored_linear(
    X, NUMBERS, SCALES, MINIMA, BIAS, OUT, tokens, outputs, dim,
    HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, E4M3: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT [tokens, outputs] = X [tokens, dim] times the stored weight [outputs, dim], plus BIAS."""
    tile_t, tile_o = _tile(tl.cdiv(tokens, BLOCK_T), tl.cdiv(outputs, BLOCK_O))
    t = (tile_t * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.arange(0, DEPTH)
    has_t, has_o = t < tokens, o < outputs
    total = tl.zeros((BLOCK_O, BLOCK_T), tl.float32)
    inputs = X + t[None, :] * dim + k[:, None]
    if GROUP:
        groups = dim // GROUP
        bytes_ = NUMBERS + o[:, None] * (dim // 2) + k[None, :]
        for group in range(groups):
            packed = tl.load(bytes_ + group * DEPTH, mask=has_o[:, None], other=0.0).to(tl.int32)
            scale = tl.load(SCALES + o * groups + group, mask=has_o, other=0.0)
            minimum = tl.load(MINIMA + o * groups + group, mask=has_o, other=0.0)
            low = _restored(packed & 15, scale, minimum, X.dtype.element_ty)
            high = _restored(packed >> 4, scale, minimum, X.dtype.element_ty)
            x = tl.load(inputs + group * GROUP, mask=has_t[None, :], other=0.0)
            total = tl.dot(low, x, total, input_precision=PRECISION)
            x = tl.load(inputs + group * GROUP + DEPTH, mask=has_t[None, :], other=0.0)
            total = tl.dot(high, x, total, input_precision=PRECISION)
    else:
        scale = tl.load(SCALES + o, mask=has_o, other=0.0)[:, None]
        numbers = NUMBERS + o[:, None] * dim + k[None, :]
        for start in range(0, dim, DEPTH):
            known = start + k < dim
            number = tl.load(numbers + start, mask=has_o[:, None] & known[None, :], other=0.0)
            if E4M3 and NUMBERS.dtype.element_ty == tl.uint8:
                value = decode_e4m3(number)
            else:
                value = number.to(tl.float32)
            weight = (value * scale).to(X.dtype.element_ty)
            x = tl.load(inputs + start, mask=has_t[None, :] & known[:, None], other=0.0)
            total = tl.dot(weight, x, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(BIAS + o, mask=has_o, other=0.0).to(tl.float32)[:, None]
    into = OUT + t[None, :] * outputs + o[:, None]
    tl.store(into, total.to(OUT.dtype.element_ty), mask=has_o[:, None] & has_t[None, :])


@triton.jit
def _tile(tiles_t, tiles_o):
    """Which tile this program computes: some of tokens with one of outputs, then the next of outputs."""
    program = tl.program_id(0)
    band = program // (_TOGETHER * tiles_o)
    first = band * _TOGETHER
    width = tl.minimum(tiles_t - first, _TOGETHER)
    place = program % (_TOGETHER * tiles_o)
    return first + place % width, place // width


@triton.jit
def _restored(number, scale, minimum, DTYPE: tl.constexpr):
    """A 4-bit number in the dtype of the product, rounded after each of its two operations."""
    scaled = (number.to(tl.float32) * scale.to(tl.float32)[:, None]).to(DTYPE)
    return (scaled.to(tl.float32) + minimum.to(tl.float32)[:, None]).to(DTYPE)
