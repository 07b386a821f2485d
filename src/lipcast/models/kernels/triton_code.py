"""The fused kernels, in Triton. Each reads its inputs once and writes its outputs once.

A row kernel takes one token; `BLOCK` is the width of a row rounded up to a power of two. Sums and norms
are float32, and are rounded where the plain twin rounds. 8-bit floats are encoded with integers: the
same bits on every GPU, those without e4m3 instructions too. `PLANES` says how a ring stores numbers: 1 as
they are, 2 as e4m3 with a scale per head, 3 as 4-bit integers with scale and minimum per group.

Imported only where Triton is installed and used.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST_SCALE = tl.constexpr(1e-12)
_ROUNDS_TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2**23: a small float32 added to it loses its fraction, rounded half to even."""


@triton.jit
def _encode_e4m3(x):
    """Float32 of at most 448, or NaN, to the byte of the nearest e4m3."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    size = tl.abs(x)
    tiny = size < 0.015625  # below 2**-6 numbers are 2**-9 apart
    steps = tl.where(tiny, size, 0.0) * 512.0
    subnormal = ((steps + _ROUNDS_TO_INTEGER) - _ROUNDS_TO_INTEGER).to(tl.int32)
    code = tl.minimum(tl.where(tiny, subnormal, normal), 0x7E)
    code = tl.where(x != x, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3(code):
    """The byte of an e4m3 to float32."""
    # The same bits as a float16 are 2**-8 of the number, subnormals included.
    half = ((code & 0x7F).to(tl.int16) << 7) | ((code & 0x80).to(tl.int16) << 8)
    value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((code & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def _store_fp8_row(y, NUMBERS, SCALES, row, dim, channel, valid):
    """Quantise one row; a NaN stays one, and makes the row of every product NaN."""
    peak = tl.max(tl.abs(tl.where(valid, y, 0.0)), 0)
    scale = tl.maximum(tl.div_rn(peak, 448.0), _LEAST_SCALE)
    tl.store(SCALES + row, scale)
    tl.store(NUMBERS + row * dim + channel, _encode_e4m3(tl.div_rn(y, scale)), mask=valid)


@triton.jit
def residual_norm(
    X, BRANCH, GATE, SUM, WEIGHT, BIAS, NUMBERS, SCALES,
    tokens_per_frame, gate_stride, affine_stride, dim, eps,
    BLOCK: tl.constexpr, ADDS: tl.constexpr, GATED: tl.constexpr, NORMS: tl.constexpr,
    MODULATES: tl.constexpr, FP8: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """SUM = X + GATE * BRANCH; rows = LayerNorm(SUM) * WEIGHT + BIAS, the weight from 1 if MODULATES."""
    row = tl.program_id(0).to(tl.int64)
    frame = row // tokens_per_frame
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    x = tl.load(X + row * dim + channel, mask=valid, other=0.0).to(tl.float32)
    if ADDS:
        branch = tl.load(BRANCH + row * dim + channel, mask=valid, other=0.0).to(tl.float32)
        if GATED:
            branch *= tl.load(GATE + frame * gate_stride + channel, mask=valid, other=0.0)
        x += branch
        tl.store(SUM + row * dim + channel, x, mask=valid)
    if NORMS:
        centred = tl.where(valid, x - tl.sum(x, 0) / dim, 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
        affine = frame * affine_stride + channel
        weight = tl.load(WEIGHT + affine, mask=valid, other=0.0).to(tl.float32)
        bias = tl.load(BIAS + affine, mask=valid, other=0.0).to(tl.float32)
        if MODULATES:
            weight += 1.0
        y = (normed * weight + bias).to(DTYPE)
        if FP8:
            _store_fp8_row(y.to(tl.float32), NUMBERS, SCALES, row, dim, channel, valid)
        else:
            tl.store(NUMBERS + row * dim + channel, y, mask=valid)


@triton.jit
def quantise_rows(X, NUMBERS, SCALES, dim, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """Rows of X, or of GELU(X) by its tanh formula, as e4m3 with a scale."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    loaded = tl.load(X + row * dim + channel, mask=valid, other=0.0)
    y = loaded.to(tl.float32)
    if GELU:
        # x (1 + tanh u) / 2 = x / (1 + exp(-2 u))
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = (y / (1.0 + tl.exp(-2.0 * u))).to(loaded.dtype).to(tl.float32)
    _store_fp8_row(y, NUMBERS, SCALES, row, dim, channel, valid)


@triton.jit
def quantise_fp4(X, NUMBERS, SCALES, TENSOR_SCALE, total, BLOCK: tl.constexpr):
    """X, in pieces of BLOCK numbers, as e2m1, two neighbours in a byte, with an e4m3 scale per 16."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = start + tl.arange(0, BLOCK)
    x = tl.load(X + place, mask=place < total, other=0.0).to(tl.float32)
    blocks = tl.reshape(x, (BLOCK // 16, 16))
    tensor_scale = tl.load(TENSOR_SCALE)
    peak = tl.max(tl.abs(blocks), 1)
    scale = _encode_e4m3(tl.minimum(tl.div_rn(peak, 6.0 * tensor_scale), 448.0))
    block = start // 16 + tl.arange(0, BLOCK // 16)
    tl.store(SCALES + block, scale, mask=block < total // 16)
    step = (decode_e4m3(scale) * tensor_scale)[:, None]
    scaled = tl.where(step > 0.0, tl.div_rn(blocks, tl.where(step > 0.0, step, 1.0)), 0.0)
    first, second = tl.split(tl.reshape(_encode_e2m1(scaled), (BLOCK // 2, 2)))
    pair = start // 2 + tl.arange(0, BLOCK // 2)
    tl.store(NUMBERS + pair, (first | (second << 4)).to(tl.uint8), mask=pair < total // 2)


@triton.jit
def _encode_e2m1(x):
    """Float32 to the bits of the nearest e2m1, ties to even."""
    size = tl.minimum(tl.abs(x), 6.0)
    # Numbers are 0.5 apart below 2, 1 below 4, and 2 above.
    steps = tl.where(size < 2.0, 2.0 * size, tl.where(size < 4.0, size, 0.5 * size))
    code = ((steps + _ROUNDS_TO_INTEGER) - _ROUNDS_TO_INTEGER).to(tl.int32)
    code += tl.where(size < 2.0, 0, tl.where(size < 4.0, 2, 4))
    return code | ((x.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def _rms_normed(x, WEIGHT, dim, eps, channel, valid):
    weight = tl.load(WEIGHT + channel, mask=valid, other=0.0).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, 0) / dim + eps) * weight


@triton.jit
def rms_norm(X, WEIGHT, OUT, dim, eps, BLOCK: tl.constexpr):
    """OUT = X / rms(X) * WEIGHT, row by row."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    x = tl.load(X + row * dim + channel, mask=valid, other=0.0).to(tl.float32)
    y = _rms_normed(x, WEIGHT, dim, eps, channel, valid)
    tl.store(OUT + row * dim + channel, y.to(OUT.dtype.element_ty), mask=valid)


@triton.jit
def _rotated(
    X, WEIGHT, COS, SIN, token, row_stride, dim, eps, BLOCK: tl.constexpr, HEAD: tl.constexpr,
    NORMS: tl.constexpr,
):  # fmt: skip
    """One token's heads, normed over all of them, each pair of channels turned by its angle."""
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    loaded = tl.load(X + token * row_stride + channel, mask=valid, other=0.0)
    x = loaded.to(tl.float32)
    if NORMS:
        x = _rms_normed(x, WEIGHT, dim, eps, channel, valid).to(loaded.dtype).to(tl.float32)
    real, imaginary = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pair = token * (HEAD // 2) + tl.arange(0, BLOCK // 2) % (HEAD // 2)
    cos, sin = tl.load(COS + pair), tl.load(SIN + pair)
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    return tl.reshape(turned, (BLOCK,)).to(loaded.dtype).to(tl.float32)


@triton.jit
def _store_kv(
    y, NUMBERS, SCALES, MINIMA, frame, row, numbers_stride, scales_stride, dim,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Store one token's heads, y [BLOCK], in a position of a ring."""
    HEADS: tl.constexpr = BLOCK // HEAD
    if PLANES == 1:
        channel = tl.arange(0, BLOCK)
        into = NUMBERS + frame * numbers_stride + row * dim + channel
        tl.store(into, y.to(NUMBERS.dtype.element_ty), mask=channel < dim)
    elif PLANES == 2:
        heads = tl.reshape(y, (HEADS, HEAD))
        head = tl.arange(0, HEADS)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(heads), 1), 448.0), _LEAST_SCALE)
        kept = SCALES + frame * scales_stride + row * (dim // HEAD) + head
        tl.store(kept, scale, mask=head * HEAD < dim)
        channel = head[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
        code = _encode_e4m3(tl.div_rn(heads, scale[:, None]))
        tl.store(NUMBERS + frame * numbers_stride + row * dim + channel, code, mask=channel < dim)
    else:
        GROUP: tl.constexpr = HEAD // GROUPS
        groups = tl.reshape(y, (BLOCK // GROUP, GROUP))
        group = tl.arange(0, BLOCK // GROUP)
        highest, lowest = tl.max(groups, 1), tl.min(groups, 1)
        minimum = lowest.to(tl.bfloat16)
        spread = tl.div_rn(highest - minimum.to(tl.float32), 15.0)
        scale = tl.maximum(spread, _LEAST_SCALE).to(tl.bfloat16)
        kept = frame * scales_stride + row * (dim // GROUP) + group
        tl.store(SCALES + kept, scale, mask=group * GROUP < dim)
        tl.store(MINIMA + kept, minimum, mask=group * GROUP < dim)
        offset = groups - minimum.to(tl.float32)[:, None]
        steps = tl.div_rn(offset, tl.broadcast_to(scale.to(tl.float32)[:, None], offset.shape))
        steps = tl.minimum(tl.maximum(steps, 0.0), 15.0)
        whole = ((steps + _ROUNDS_TO_INTEGER) - _ROUNDS_TO_INTEGER).to(tl.int32)
        halves = tl.permute(tl.reshape(whole, (HEADS, 2, HEAD // 2)), (0, 2, 1))
        low, high = tl.split(halves)
        byte = tl.arange(0, HEADS)[:, None] * (HEAD // 2) + tl.arange(0, HEAD // 2)[None, :]
        into = NUMBERS + frame * numbers_stride + row * (dim // 2) + byte
        tl.store(into, (low | (high << 4)).to(tl.uint8), mask=byte < dim // 2)


@triton.jit
def rotate_and_write(
    Q, K, V, WEIGHT_Q, WEIGHT_K, COS, SIN, Q_OUT,
    K_NUMBERS, K_SCALES, K_MINIMA, V_NUMBERS, V_SCALES, V_MINIMA,
    tokens_per_frame, numbers_stride, scales_stride, row_stride, dim, eps,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr,
    NORMS: tl.constexpr,
):  # fmt: skip
    """Norm and rotate queries and keys; queries to Q_OUT, keys and values to positions of a ring."""
    token = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    frame, row = token // tokens_per_frame, token % tokens_per_frame
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    if which == 0:
        y = _rotated(Q, WEIGHT_Q, COS, SIN, token, row_stride, dim, eps, BLOCK, HEAD, NORMS)
        tl.store(Q_OUT + token * dim + channel, y.to(Q_OUT.dtype.element_ty), mask=valid)
    elif which == 1:
        y = _rotated(K, WEIGHT_K, COS, SIN, token, row_stride, dim, eps, BLOCK, HEAD, NORMS)
        _store_kv(
            y, K_NUMBERS, K_SCALES, K_MINIMA, frame, row, numbers_stride, scales_stride, dim,
            BLOCK, HEAD, GROUPS, PLANES,
        )  # fmt: skip
    else:
        y = tl.load(V + token * row_stride + channel, mask=valid, other=0.0).to(tl.float32)
        _store_kv(
            y, V_NUMBERS, V_SCALES, V_MINIMA, frame, row, numbers_stride, scales_stride, dim,
            BLOCK, HEAD, GROUPS, PLANES,
        )  # fmt: skip


@triton.jit
def load_kv(
    NUMBERS, SCALES, MINIMA, frame, row, head, channel, valid, numbers_stride, scales_stride,
    dim, HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Numbers of a ring: `channel` of `head` of token `row` of position `frame`; all of them broadcast."""
    GROUP: tl.constexpr = HEAD // GROUPS
    if PLANES == 3:
        place = row * (dim // 2) + head * (HEAD // 2) + channel % (HEAD // 2)
    else:
        place = row * dim + head * HEAD + channel
    numbers = tl.load(NUMBERS + frame * numbers_stride + place, mask=valid, other=0.0)
    if PLANES > 1:
        kept = frame * scales_stride + row * (dim // GROUP) + head * GROUPS + channel // GROUP
        scale = tl.load(SCALES + kept, mask=valid, other=0.0).to(tl.float32)
        if PLANES == 2:
            if NUMBERS.dtype.element_ty == tl.uint8:
                numbers = decode_e4m3(numbers) * scale
            else:
                numbers = numbers.to(tl.float32) * scale
        else:
            minimum = tl.load(MINIMA + kept, mask=valid, other=0.0).to(tl.float32)
            nibble = (numbers.to(tl.int32) >> (channel // (HEAD // 2) * 4)) & 15
            numbers = nibble.to(tl.float32) * scale + minimum
    return numbers


@triton.jit
def join_keys_values(
    K_NUMBERS, K_SCALES, K_MINIMA, V_NUMBERS, V_SCALES, V_MINIMA, REF_KEYS, MOTION_KEYS, VALUES,
    K_OUT, V_OUT, num_ring, num_ref, tokens_per_frame, numbers_stride, scales_stride, dim,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Keys and values of the ring, then of the sink, side by side."""
    token = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    frame, row = token // tokens_per_frame, token % tokens_per_frame
    head, place = channel // HEAD, channel % HEAD
    sink = token - num_ring
    if token < num_ring:
        if which == 0:
            y = load_kv(
                K_NUMBERS, K_SCALES, K_MINIMA, frame, row, head, place, valid, numbers_stride,
                scales_stride, dim, HEAD, GROUPS, PLANES,
            ).to(tl.float32)  # fmt: skip
        else:
            y = load_kv(
                V_NUMBERS, V_SCALES, V_MINIMA, frame, row, head, place, valid, numbers_stride,
                scales_stride, dim, HEAD, GROUPS, PLANES,
            ).to(tl.float32)  # fmt: skip
    elif which == 1:
        y = tl.load(VALUES + sink * dim + channel, mask=valid, other=0.0).to(tl.float32)
    elif sink < num_ref:
        y = tl.load(REF_KEYS + sink * dim + channel, mask=valid, other=0.0).to(tl.float32)
    else:
        motion = MOTION_KEYS + (sink - num_ref) * dim + channel
        y = tl.load(motion, mask=valid, other=0.0).to(tl.float32)
    if which == 0:
        tl.store(K_OUT + token * dim + channel, y.to(K_OUT.dtype.element_ty), mask=valid)
    else:
        tl.store(V_OUT + token * dim + channel, y.to(V_OUT.dtype.element_ty), mask=valid)


@triton.jit
def merge_parts(
    FIRST, FIRST_LSE, SECOND, SECOND_LSE, THIRD, THIRD_LSE, OUT, num_tokens, dim,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Store the attention to all keys of one token, from that to parts of them by exp(log-sum-exp)."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    valid = channel < dim
    place, kept = token * dim + channel, channel // HEAD * num_tokens + token
    first = tl.load(FIRST_LSE + kept, mask=valid, other=0.0)
    second, third = first, first
    if PARTS > 1:
        second = tl.load(SECOND_LSE + kept, mask=valid, other=0.0)
    if PARTS > 2:
        third = tl.load(THIRD_LSE + kept, mask=valid, other=0.0)
    peak = tl.maximum(tl.maximum(first, second), third)
    share = tl.exp(first - peak)
    total, sums = share, tl.load(FIRST + place, mask=valid, other=0.0).to(tl.float32) * share
    if PARTS > 1:
        share = tl.exp(second - peak)
        total += share
        sums += tl.load(SECOND + place, mask=valid, other=0.0).to(tl.float32) * share
    if PARTS > 2:
        share = tl.exp(third - peak)
        total += share
        sums += tl.load(THIRD + place, mask=valid, other=0.0).to(tl.float32) * share
    tl.store(OUT + place, (sums / total).to(OUT.dtype.element_ty), mask=valid)
