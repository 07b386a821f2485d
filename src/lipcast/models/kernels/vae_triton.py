"""The autoencoder's fused kernels, in Triton.

`convolve` is an implicit matrix product: a program computes a tile of pixels of one frame, and walks
through taps and channels. The channels of a pixel lie side by side, so that what it reads for a tap are
rows of a matrix. Past frames, the doubling of the picture, bias and residual cost no pass of their own.
Sums are float32 and rounded once. A frame's bits do not depend on the frames beside it.

Imported only where Triton is installed and used.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST_NORM = tl.constexpr(1e-12)
_SIZES = [
    "num_frames", "first_frame", "height", "width", "out_height", "out_width", "beside_frames"
]  # fmt: skip
"""One program serves all of them: compiling takes seconds."""


@triton.jit
def norm_silu(
    X, GAMMA, OUT, NEWEST, num_rows, first_kept, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """silu(x / |x| * gamma) of every pixel; from row `first_kept` on also to NEWEST."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    valid = (row < num_rows)[:, None] & (channel < C)[None, :]
    at = row[:, None] * C + channel[None, :]
    x = tl.load(X + at, mask=valid, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), _LEAST_NORM)
    gamma = tl.load(GAMMA + channel, mask=channel < C, other=0.0).to(tl.float32)
    x = x / norm[:, None] * gamma[None, :]
    x = (x / (1.0 + tl.exp(-x))).to(OUT.dtype.element_ty)
    tl.store(OUT + at, x, mask=valid)
    kept = (row >= first_kept)[:, None] & valid
    tl.store(NEWEST + (at - first_kept * C), x, mask=kept)


@triton.jit(do_not_specialize=_SIZES)
def convolve(
    X, PAST, WEIGHT, BIAS, BESIDE, OUT,
    num_frames, first_frame, height, width, out_height, out_width, beside_frames,
    C: tl.constexpr, O: tl.constexpr, TAPS_T: tl.constexpr, TAPS: tl.constexpr,
    NUM_PAST: tl.constexpr, STRIDE_T: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    UP: tl.constexpr, PIECES: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK: tl.constexpr, TAIL: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A causal convolution [T, H, W, C] -> [T * PIECES, H, W, O / PIECES], weights [O, taps, C].

    Programs: (tile of pixels, block of channels) x frame. A block is BLOCK + TAIL output channels: widths
    that are three times a power of two waste nothing.
    """
    frame = tl.program_id(1)
    blocks: tl.constexpr = (O + BLOCK + TAIL - 1) // (BLOCK + TAIL)
    tile = tl.program_id(0) // blocks
    n = tl.program_id(0) % blocks * (BLOCK + TAIL) + tl.arange(0, BLOCK)
    pixel = tl.arange(0, TILE_H * TILE_W)
    tiles_in_row = tl.cdiv(out_width, TILE_W)
    row = tile // tiles_in_row * TILE_H + pixel // TILE_W
    column = tile % tiles_in_row * TILE_W + pixel % TILE_W
    inside = (row < out_height) & (column < out_width)
    area = height.to(tl.int64) * width * C
    k = tl.arange(0, DEPTH)
    total = tl.zeros((TILE_H * TILE_W, BLOCK), tl.float32)
    if TAIL:
        n_tail = tl.program_id(0) % blocks * (BLOCK + TAIL) + BLOCK + tl.arange(0, TAIL)
        total_tail = tl.zeros((TILE_H * TILE_W, TAIL), tl.float32)
    chunks: tl.constexpr = (C + DEPTH - 1) // DEPTH
    for step in range(TAPS_T * TAPS * TAPS * chunks):
        tap = step // chunks
        c = step % chunks * DEPTH
        t = frame * STRIDE_T + tap // (TAPS * TAPS) - NUM_PAST
        y = row * STRIDE - PAD + tap // TAPS % TAPS
        x = column * STRIDE - PAD + tap % TAPS
        rows = tl.where(t >= first_frame, height << UP, 0)
        seen = inside & (y >= 0) & (y < rows) & (x >= 0) & (x < width << UP)
        from_chunk = X + tl.minimum(t, num_frames - 1) * area
        source = tl.where(t < 0, PAST + (t + NUM_PAST) * area, from_chunk)
        at = ((y >> UP) * width + (x >> UP)) * C + c
        # Neighbouring taps read nearly the same pixels: from the first-level cache (".ca").
        a = _load(source + at[:, None] + k[None, :], seen[:, None], c + k[None, :], C, DEPTH, ".ca")
        w = WEIGHT + tap * C + c + k[:, None]
        taps_in_all: tl.constexpr = TAPS_T * TAPS * TAPS * C
        b = _load(w + n[None, :] * taps_in_all, (n < O)[None, :], c + k[:, None], C, DEPTH, ".cg")
        total = tl.dot(a, b, total, input_precision=PRECISION)
        if TAIL:
            b = w + n_tail[None, :] * taps_in_all
            b = _load(b, (n_tail < O)[None, :], c + k[:, None], C, DEPTH, ".cg")
            total_tail = tl.dot(a, b, total_tail, input_precision=PRECISION)
    pixel = row * out_width + column
    area = out_height * out_width
    _finish(total, BIAS, BESIDE, OUT, frame, pixel, area, inside, n, beside_frames, O, PIECES)
    if TAIL:
        _finish(
            total_tail, BIAS, BESIDE, OUT, frame, pixel, area, inside, n_tail, beside_frames, O, PIECES
        )  # fmt: skip


@triton.jit
def _load(pointers, valid, c, C: tl.constexpr, DEPTH: tl.constexpr, CACHE: tl.constexpr):
    if C % DEPTH:
        valid = valid & (c < C)
    return tl.load(pointers, mask=valid, other=0.0, cache_modifier=CACHE)


@triton.jit
def _finish(
    total, BIAS, BESIDE, OUT, frame, pixel, area, inside, n, beside_frames, O: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Add bias and residual, and store; each of the PIECES of the channels is a frame."""
    valid = inside[:, None] & (n < O)[None, :]
    total += tl.load(BIAS + n, mask=n < O, other=0.0).to(tl.float32)[None, :]
    if beside_frames > 0:
        source = BESIDE + tl.minimum(frame, beside_frames - 1).to(tl.int64) * area * O
        total += tl.load(source + pixel[:, None] * O + n[None, :], mask=valid, other=0.0).to(
            tl.float32
        )
    channels: tl.constexpr = O // PIECES
    piece = n // channels * area * channels + n % channels
    target = OUT + frame.to(tl.int64) * area * O
    tl.store(
        target + pixel[:, None] * channels + piece[None, :], total.to(OUT.dtype.element_ty), mask=valid
    )  # fmt: skip
