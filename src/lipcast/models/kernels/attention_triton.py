"""Attention to a ring and a sink where they lie, in Triton, with an online softmax.

A program takes a block of queries of one head. `PLANES` says how the ring stores numbers, as in
`triton_code`. Numbers of a quantised ring are multiplied as they are, since 8-bit floats and 4-bit integers
are exact in 16 bits: a token's scale is applied to its scores and to its shares, and a minimum once per
group, so that nothing but a conversion is done for every number and block of queries.

Imported only where Triton is installed and used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lipcast.models.kernels.triton_code import decode_e4m3, load_kv


@triton.jit
def _shares(scores, peak, total, known):
    """Take scores of some more keys into a running softmax: shares, what the past shrinks by, peak, total."""
    scores = tl.where(known[None, :], scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    shares = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(peak - higher)
    return shares, shrink, higher, total * shrink + tl.sum(shares, 1)


@triton.jit
def _tile(FIRST, start, count, offset, dim, BLOCK_K: tl.constexpr):
    """Channels of the sink's tokens from `start` on, and which of them there are."""
    token = start + tl.arange(0, BLOCK_K)
    known = token < count
    tile = tl.load(FIRST + token[:, None] * dim + offset[None, :], mask=known[:, None], other=0.0)
    return tile, known


@triton.jit
def _exact(numbers, DTYPE: tl.constexpr):
    """8-bit floats, or their bytes, in the dtype of the product."""
    if numbers.dtype == tl.uint8:
        numbers = decode_e4m3(numbers)
    return numbers.to(DTYPE)


@triton.jit
def _sink_step(
    KEYS, VALUES, start, count, q, offset, dim, to_log2, peak, total, sums,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k, known = _tile(KEYS, start, count, offset, dim, BLOCK_K)
    v, known = _tile(VALUES, start, count, offset, dim, BLOCK_K)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * to_log2
    shares, shrink, peak, total = _shares(scores, peak, total, known)
    added = tl.dot(shares.to(v.dtype), v, input_precision=PRECISION)
    return peak, total, sums * shrink[:, None] + added


@triton.jit
def attend_segments(
    Q, K_NUMBERS, K_SCALES, K_MINIMA, V_NUMBERS, V_SCALES, V_MINIMA, REF_KEYS, MOTION_KEYS, VALUES,
    OUT, num_queries, num_ring, num_ref, num_motion, tokens_per_frame, numbers_stride,
    scales_stride, dim, to_log2,
    HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries of one head to ring, reference and motion where they lie."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    channel = tl.arange(0, HEAD)
    offset = head * HEAD + channel
    inside = (query < num_queries)[:, None]
    q = tl.load(Q + query[:, None] * dim + offset[None, :], mask=inside, other=0.0)
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    for start in range(0, num_ring, BLOCK_K):
        token = start + tl.arange(0, BLOCK_K)
        known = token < num_ring
        frame, row = (token // tokens_per_frame).to(tl.int64), token % tokens_per_frame
        if PLANES == 2:
            at = (frame * numbers_stride + row * dim)[:, None] + offset[None, :]
            k = _exact(tl.load(K_NUMBERS + at, mask=known[:, None], other=0.0), q.dtype)
            v = _exact(tl.load(V_NUMBERS + at, mask=known[:, None], other=0.0), q.dtype)
            kept = frame * scales_stride + row * (dim // HEAD) + head
            k_scale = tl.load(K_SCALES + kept, mask=known, other=0.0) * to_log2
            v_scale = tl.load(V_SCALES + kept, mask=known, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * k_scale[None, :]
            shares, shrink, peak, total = _shares(scores, peak, total, known)
            shares = shares * v_scale[None, :]
        else:
            k = load_kv(
                K_NUMBERS, K_SCALES, K_MINIMA, frame[:, None], row[:, None], head,
                channel[None, :], known[:, None], numbers_stride, scales_stride, dim, HEAD, GROUPS, PLANES,
            ).to(q.dtype)  # fmt: skip
            v = load_kv(
                V_NUMBERS, V_SCALES, V_MINIMA, frame[:, None], row[:, None], head,
                channel[None, :], known[:, None], numbers_stride, scales_stride, dim, HEAD, GROUPS, PLANES,
            ).to(q.dtype)  # fmt: skip
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * to_log2
            shares, shrink, peak, total = _shares(scores, peak, total, known)
        added = tl.dot(shares.to(q.dtype), v, input_precision=PRECISION)
        sums = sums * shrink[:, None] + added
    for start in range(0, num_ref, BLOCK_K):
        peak, total, sums = _sink_step(
            REF_KEYS, VALUES, start, num_ref, q, offset, dim, to_log2, peak, total, sums, BLOCK_K,
            PRECISION,
        )  # fmt: skip
    for start in range(0, num_motion, BLOCK_K):
        peak, total, sums = _sink_step(
            MOTION_KEYS, VALUES + num_ref * dim, start, num_motion, q, offset, dim, to_log2, peak, total,
            sums, BLOCK_K, PRECISION,
        )  # fmt: skip
    out = (sums / total[:, None]).to(OUT.dtype.element_ty)
    tl.store(OUT + query[:, None] * dim + offset[None, :], out, mask=inside)


@triton.jit
def _packed_tile(
    NUMBERS, SCALES, MINIMA, at, kept, known, GROUPS: tl.constexpr, DTYPE: tl.constexpr
):
    """4-bit numbers of some tokens: both halves of the head, each with its scale and minimum."""
    both = tl.load(NUMBERS + at, mask=known[:, None], other=0.0).to(tl.int32)
    low, high = (both & 15).to(tl.float32).to(DTYPE), (both >> 4).to(tl.float32).to(DTYPE)
    last = kept + (GROUPS - 1)
    scale_low = tl.load(SCALES + kept, mask=known, other=0.0).to(tl.float32)
    scale_high = tl.load(SCALES + last, mask=known, other=0.0).to(tl.float32)
    least_low = tl.load(MINIMA + kept, mask=known, other=0.0).to(tl.float32)
    least_high = tl.load(MINIMA + last, mask=known, other=0.0).to(tl.float32)
    return (
        low,
        high,
        scale_low[None, :],
        scale_high[None, :],
        least_low[None, :],
        least_high[None, :],
    )


@triton.jit
def _packed_sink_step(
    KEYS, VALUES, start, count, q_low, q_high, low, half, dim, to_log2, peak, total, sums_low, sums_high,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k_low, known = _tile(KEYS, start, count, low, dim, BLOCK_K)
    k_high, known = _tile(KEYS, start, count, low + half, dim, BLOCK_K)
    scores = tl.dot(q_low, tl.trans(k_low), input_precision=PRECISION)
    scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision=PRECISION) * to_log2
    shares, shrink, peak, total = _shares(scores, peak, total, known)
    v_low, known = _tile(VALUES, start, count, low, dim, BLOCK_K)
    v_high, known = _tile(VALUES, start, count, low + half, dim, BLOCK_K)
    weights = shares.to(v_low.dtype)
    sums_low = tl.dot(weights, v_low, sums_low * shrink[:, None], input_precision=PRECISION)
    sums_high = tl.dot(weights, v_high, sums_high * shrink[:, None], input_precision=PRECISION)
    return peak, total, sums_low, sums_high


@triton.jit
def attend_packed(
    Q, K_NUMBERS, K_SCALES, K_MINIMA, V_NUMBERS, V_SCALES, V_MINIMA, REF_KEYS, MOTION_KEYS, VALUES,
    OUT, num_queries, num_ring, num_ref, num_motion, tokens_per_frame, numbers_stride,
    scales_stride, dim, to_log2,
    HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same with a ring of 4-bit integers, whose halves of a head lie in the same bytes."""
    HALF: tl.constexpr = HEAD // 2
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    channel = tl.arange(0, HALF)
    low = head * HEAD + channel
    inside = (query < num_queries)[:, None]
    q_low = tl.load(Q + query[:, None] * dim + low[None, :], mask=inside, other=0.0)
    q_high = tl.load(Q + query[:, None] * dim + HALF + low[None, :], mask=inside, other=0.0)
    all_low, all_high = (
        tl.sum(q_low.to(tl.float32), 1)[:, None],
        tl.sum(q_high.to(tl.float32), 1)[:, None],
    )
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums_low, sums_high = (
        tl.zeros((BLOCK_Q, HALF), tl.float32),
        tl.zeros((BLOCK_Q, HALF), tl.float32),
    )
    for start in range(0, num_ring, BLOCK_K):
        token = start + tl.arange(0, BLOCK_K)
        known = token < num_ring
        frame, row = (token // tokens_per_frame).to(tl.int64), token % tokens_per_frame
        at = (frame * numbers_stride + row * (dim // 2) + head * HALF)[:, None] + channel[None, :]
        kept = frame * scales_stride + (row * (dim // HEAD) + head) * GROUPS
        k_low, k_high, scale_low, scale_high, least_low, least_high = _packed_tile(
            K_NUMBERS, K_SCALES, K_MINIMA, at, kept, known, GROUPS, q_low.dtype
        )
        scores = tl.dot(q_low, tl.trans(k_low), input_precision=PRECISION) * scale_low
        scores += tl.dot(q_high, tl.trans(k_high), input_precision=PRECISION) * scale_high
        scores += all_low * least_low + all_high * least_high
        shares, shrink, peak, total = _shares(scores * to_log2, peak, total, known)
        v_low, v_high, scale_low, scale_high, least_low, least_high = _packed_tile(
            V_NUMBERS, V_SCALES, V_MINIMA, at, kept, known, GROUPS, q_low.dtype
        )
        sums_low = sums_low * shrink[:, None] + tl.sum(shares * least_low, 1)[:, None]
        sums_high = sums_high * shrink[:, None] + tl.sum(shares * least_high, 1)[:, None]
        weights = (shares * scale_low).to(q_low.dtype)
        sums_low = tl.dot(weights, v_low, sums_low, input_precision=PRECISION)
        weights = (shares * scale_high).to(q_low.dtype)
        sums_high = tl.dot(weights, v_high, sums_high, input_precision=PRECISION)
    for start in range(0, num_ref, BLOCK_K):
        peak, total, sums_low, sums_high = _packed_sink_step(
            REF_KEYS, VALUES, start, num_ref, q_low, q_high, low, HALF, dim, to_log2, peak, total,
            sums_low, sums_high, BLOCK_K, PRECISION,
        )  # fmt: skip
    for start in range(0, num_motion, BLOCK_K):
        peak, total, sums_low, sums_high = _packed_sink_step(
            MOTION_KEYS, VALUES + num_ref * dim, start, num_motion, q_low, q_high, low, HALF, dim,
            to_log2, peak, total, sums_low, sums_high, BLOCK_K, PRECISION,
        )  # fmt: skip
    into = OUT + query[:, None] * dim + low[None, :]
    tl.store(into, (sums_low / total[:, None]).to(OUT.dtype.element_ty), mask=inside)
    tl.store(into + HALF, (sums_high / total[:, None]).to(OUT.dtype.element_ty), mask=inside)
