"""Every fused kernel against its plain twin, in Triton's interpreter.

Both round where the other rounds, so that results are the same numbers or neighbours in their format:
`assert_near` allows one step of it, and 2**-18 of the largest number for sums in another order.
"""

from __future__ import annotations

import math

import pytest
import torch
import triton_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcast.models.kernels import triton_code
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Affine, Kernels, Modulation, Remembered, RowFormat
from lipcast.models.kv_codec import kv_codec
from lipcast.models.kv_ring import KVRing, RingLayout
from lipcast.models.layers import QueryKeyNorms, RMSNorm
from lipcast.models.quant_formats import FP8, Fp4Rows, QuantisedRows, Rows, quantise_rows_fp8
from lipcast.models.rope import Rotary
from lipcast.models.sink import PlacedSink, Sink, SinkLayout, SinkPlanes
from profiles import examples

triton, tl = triton_interpreter.triton, triton_interpreter.tl
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant
PLAIN, FUSED = Kernels(), FusedKernels(None)
CPU = torch.device("cpu")
BF16 = torch.bfloat16
STEP = {torch.float32: 2.0**-20, BF16: 2.0**-7, FP8: 2.0**-3}
"""Distance of neighbours, relative, with room for the rounding of what is compared."""
FORMATS = [RowFormat(BF16), RowFormat(BF16, fp8=True), RowFormat(torch.float32)]


def assert_near(found: Tensor, expected: Tensor, step: float) -> None:
    """The same numbers, or neighbours in a format."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    found, expected = found.double(), expected.double()
    assert torch.equal(found.isnan(), expected.isnan())
    peak = float(expected.nan_to_num().abs().max()) if expected.numel() else 0.0
    difference = (found - expected).abs().nan_to_num()
    assert (difference <= step * expected.abs().nan_to_num() + 2.0**-18 * peak).all()
    if step > STEP[torch.float32]:  # neighbours are rare
        assert int((difference > 0).sum()) <= 2 + expected.numel() // 50


def assert_same_rows(found: Rows, expected: Rows) -> None:
    if isinstance(found, Tensor):
        assert isinstance(expected, Tensor)
        return assert_near(found, expected, STEP[found.dtype])
    assert isinstance(expected, QuantisedRows) and found.dtype == expected.dtype
    assert_near(found.scale, expected.scale, 2.0**-7)  # the peak may round to its neighbour
    assert_near(found.restore(), expected.restore(), STEP[FP8])
    return None


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def modulation(frames: int, dim: int, seed: int) -> Modulation:
    """Rows as a block cuts them out of all six: with a stride."""
    rows = drawn(frames, 6, dim, seed=seed).transpose(0, 1).unsqueeze(2)
    return Modulation(rows[0], rows[1], 1e-6)


def affine(dim: int, seed: int) -> Affine:
    weight, bias = drawn(2, dim, seed=seed, dtype=BF16)
    return Affine(weight, bias, 1e-6)


@settings(max_examples=examples(12))
@given(
    tokens=st.integers(1, 4),
    dim=st.sampled_from([16, 32, 48, 96, 160]),
    magnitude=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 300.0]),
    dtype=st.sampled_from([BF16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_nvfp4_rows(tokens: int, dim: int, magnitude: float, dtype: torch.dtype, seed: int) -> None:
    """The same bits: every operation is rounded as in the plain twin."""
    x = (drawn(tokens, dim, seed=seed) * drawn(tokens, 1, seed=seed + 1).exp() * magnitude).to(
        dtype
    )
    form = RowFormat(dtype, fp4=True)
    found, expected = FUSED.rows(x, form), PLAIN.rows(x, form)
    assert isinstance(found, Fp4Rows) and isinstance(expected, Fp4Rows)
    assert torch.equal(found.numbers, expected.numbers)
    assert torch.equal(found.scale.view(torch.uint8), expected.scale.view(torch.uint8))
    assert torch.equal(found.tensor_scale, expected.tensor_scale)


def test_nvfp4_rows_of_norms_and_gelu() -> None:
    form, x = RowFormat(BF16, fp4=True), drawn(2, 3, 64, seed=5)
    for rows in (FUSED.normalise(x, affine(64, 6), form), FUSED.gelu(x.to(BF16), form)):
        assert isinstance(rows, Fp4Rows) and rows.numbers.shape == (2, 3, 32)
    assert torch.equal(
        FUSED.gelu(x.to(BF16), form).restore(), PLAIN.gelu(x.to(BF16), form).restore()
    )
    ones = torch.ones(1, 16, dtype=BF16)
    ones[0, 3] = torch.nan
    assert FUSED.rows(ones, form).restore().isnan().all()


MAGNITUDES = st.sampled_from([0.0, 1e-41, 1e-20, 1e-3, 1.0, 300.0, 1e12])


@settings(max_examples=examples(12))
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 2, st.sampled_from([16, 24, 100])),
    magnitudes=st.tuples(MAGNITUDES, MAGNITUDES),
    offset=st.sampled_from([0.0, 3.0]),
    is_modulated=st.booleans(),
    gates=st.booleans(),
    form=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
)
def test_residual_gate_norm_and_rows(
    sizes: tuple[int, int, int],
    magnitudes: tuple[float, float],
    offset: float,
    is_modulated: bool,
    gates: bool,
    form: RowFormat,
    seed: int,
) -> None:
    frames, _, dim = sizes
    x = (drawn(*sizes, seed=seed) + offset) * magnitudes[0]
    branch = (drawn(*sizes, seed=seed + 1) * magnitudes[1]).to(form.dtype)
    gate = drawn(frames, 6, 1, dim, seed=seed + 2)[:, 2] if gates else None
    norm = modulation(frames, dim, seed + 3) if is_modulated else affine(dim, seed + 3)
    total, rows = FUSED.add_normalise(x, branch, gate, norm, form)
    expected_total, expected_rows = PLAIN.add_normalise(x, branch, gate, norm, form)
    assert_near(total, expected_total, STEP[torch.float32])
    assert_near(FUSED.add(x, branch, gate), expected_total, STEP[torch.float32])
    assert_same_rows(rows, expected_rows)
    assert_same_rows(FUSED.normalise(x, norm, form), PLAIN.normalise(x, norm, form))


@settings(max_examples=examples(12))
@given(
    dim=st.sampled_from([16, 24, 100, 256]),
    magnitude=MAGNITUDES,
    form=st.sampled_from(FORMATS[:2]),
    seed=st.integers(0, 99),
)
def test_gelu_attention_output_and_rms(
    dim: int, magnitude: float, form: RowFormat, seed: int
) -> None:
    x = (drawn(2, 3, dim, seed=seed) * magnitude).to(BF16)
    x[0, 0] = 0
    assert_same_rows(FUSED.gelu(x, form), PLAIN.gelu(x, form))
    assert_same_rows(FUSED.rows(x, form), PLAIN.rows(x, form))
    norm = rms(dim, seed)
    assert_near(FUSED.rms_norm(x, norm), PLAIN.rms_norm(x, norm), STEP[BF16])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(broken: float) -> None:
    """Rows of NaN and infinity make rows of NaN in a product, and leave their neighbours alone."""
    form, x = RowFormat(BF16, fp8=True), drawn(1, 4, 32, seed=0)
    x[0, 1, 7], x[0, 2] = broken, broken
    norm = modulation(1, 32, 1)
    found = {
        "norm": FUSED.normalise(x, norm, form),
        "rows": FUSED.rows(x.to(BF16), form),
        "gelu": FUSED.gelu(x.to(BF16), form),
    }
    expected = {
        "norm": PLAIN.normalise(x, norm, form),
        "rows": PLAIN.rows(x.to(BF16), form),
        "gelu": PLAIN.gelu(x.to(BF16), form),
    }
    for name, rows in found.items():
        assert isinstance(rows, QuantisedRows) and isinstance(expected[name], QuantisedRows)
        products = [r.restore().float().sum(-1).isnan() for r in (rows, expected[name])]
        assert torch.equal(*products), name
        one, other = (r.restore()[0, [0, 3]] for r in (rows, expected[name]))
        assert_near(one, other, STEP[FP8])


@pytest.mark.parametrize("dim", [5120, 13824], ids=["hidden states", "feed-forward"])
def test_rows_of_the_published_model(dim: int) -> None:
    """Three latent frames, as wide as they are; 704*384 has 1056 tokens each, and these some."""
    form, sizes = RowFormat(BF16, fp8=True), (3, 2, dim)
    x, branch = drawn(*sizes, seed=0) * 4, drawn(*sizes, seed=1, dtype=BF16)
    gate, norm = drawn(3, 1, dim, seed=2), modulation(3, dim, 3)
    found, expected = (k.add_normalise(x, branch, gate, norm, form) for k in (FUSED, PLAIN))
    assert_near(found[0], expected[0], STEP[torch.float32])
    assert_same_rows(found[1], expected[1])
    assert_same_rows(FUSED.gelu(branch, form), PLAIN.gelu(branch, form))


def rms(dim: int, seed: int) -> RMSNorm:
    norm = RMSNorm(dim, 1e-6).requires_grad_(False)
    norm.weight.data = drawn(dim, seed=seed, dtype=BF16)
    return norm


def placed_sink(
    num_ref: int, num_motion: int, heads: tuple[int, int], dtype: torch.dtype
) -> PlacedSink:
    layout = SinkLayout(num_ref, num_motion, *heads, dtype)
    sink = Sink.allocate(layout, num_layers=1, device=CPU)
    planes = (
        drawn(n, *heads, seed=n, dtype=dtype) for n in (num_ref, num_motion, num_ref + num_motion)
    )
    sink.keep(0, SinkPlanes(*planes))
    return sink.place(Rotary(heads[1]).video(30, 1, 1, num_ref), None)


def attended(
    kernels: Kernels,
    precision: str,
    *,
    heads: tuple[int, int],
    tokens: int,
    window: int,
    blocks: int,
    dtype: torch.dtype = BF16,
    magnitude: float = 1.0,
    normed: bool = False,
) -> list[Tensor]:
    """Queries, outputs and the planes of a ring after some blocks of three latent frames."""
    codec = kv_codec(precision, num_heads=heads[0], head_dim=heads[1])  # type: ignore[arg-type]
    ring = KVRing.allocate(RingLayout(codec, window, tokens), num_layers=1, device=CPU)
    sink = placed_sink(tokens, 5, heads, dtype)
    norms, results = QueryKeyNorms(rms(math.prod(heads), 1), rms(math.prod(heads), 2)), []
    for block in range(blocks):
        made = drawn(3, 3 * tokens, *heads, seed=block) * magnitude
        q, k, v = made.to(dtype)
        table = Rotary(heads[1]).video(3 * block, 3, 1, tokens)
        remembered = Remembered(ring, sink, 0, 3 * block + 3)
        rotated = kernels.rotate_and_write(
            q, k, v, norms if block or normed else None, table, remembered
        )
        results += [rotated, kernels.attend(rotated, remembered)]
        results += kernels.joined(rotated, remembered)
    planes = ring.filled(0, 3 * blocks)
    return [*results, *planes.keys, *planes.values]


LAYOUTS = [
    ((3, 128), 2, 4, "bf16"),
    ((3, 128), 2, 4, "fp8"),
    ((3, 128), 2, 4, "int4"),
    *(
        pytest.param(*layout, precision, marks=pytest.mark.slow)
        for layout in (((4, 64), 4, 5), ((5, 16), 7, 3), ((40, 128), 1, 4))
        for precision in ("fp32", "bf16", "fp8", "int4")
    ),
]
"""Heads, tokens per latent frame, window, precision."""


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "joined"])
@pytest.mark.parametrize(("heads", "tokens", "window", "precision"), LAYOUTS)
def test_rotation_ring_and_attention(
    heads: tuple[int, int], tokens: int, window: int, precision: str, in_place: bool
) -> None:
    """The ring fills, wraps inside a block, and is attended with the sink; heads are no power of two."""
    case = {"heads": heads, "tokens": tokens, "window": window, "blocks": 2}
    found = attended(FusedKernels(None, in_place=in_place), precision, **case)  # type: ignore[arg-type]
    expected = attended(PLAIN, precision, **case)  # type: ignore[arg-type]
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        is_output = index < 8 and index % 4 == 1
        if is_output:
            error = (one.float() - other.float()).norm() / other.float().norm()
            assert error < 2.0**-7
        else:
            assert_near(one.float(), other.float(), STEP[BF16] if one.dtype == BF16 else STEP[FP8])


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_queries_keys_and_values_of_one_product(precision: str) -> None:
    """Rows with a stride, as one product leaves them, give the bits of contiguous ones."""
    heads, tokens = (3, 32), 2
    joined = drawn(3 * tokens, 3 * math.prod(heads), seed=0, dtype=BF16)
    strided = [part.unflatten(-1, heads) for part in joined.chunk(3, -1)]
    norms, table = QueryKeyNorms(rms(96, 1), rms(96, 2)), Rotary(heads[1]).video(0, 3, 1, tokens)
    found = []
    for q_TNd, k_TNd, v_TNd in (strided, [part.contiguous() for part in strided]):
        codec = kv_codec(precision, num_heads=3, head_dim=32)  # type: ignore[arg-type]
        ring = KVRing.allocate(RingLayout(codec, 3, tokens), num_layers=1, device=CPU)
        remembered = Remembered(ring, placed_sink(tokens, 2, heads, BF16), 0, 3)
        rotated = FUSED.rotate_and_write(q_TNd, k_TNd, v_TNd, norms, table, remembered)
        planes = ring.filled(0, 3)
        found.append([rotated, *planes.keys, *planes.values])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@settings(max_examples=5)
@given(
    precision=st.sampled_from(["bf16", "fp8", "int4"]),
    magnitude=st.sampled_from([0.0, 1e-30, 1e-4, 1e3]),
    in_place=st.booleans(),
)
def test_extreme_keys_and_values(precision: str, magnitude: float, in_place: bool) -> None:
    case = {"heads": (2, 16), "tokens": 2, "window": 3, "blocks": 1, "magnitude": magnitude}
    # Scores of thousands would show whether keys are rounded before their product, as the twin's are.
    case["normed"] = in_place
    found = attended(FusedKernels(None, in_place=in_place), precision, **case)  # type: ignore[arg-type]
    expected = attended(PLAIN, precision, **case)  # type: ignore[arg-type]
    for one, other in zip(found, expected, strict=True):
        scale = float(other.float().abs().max())
        assert (one.float() - other.float()).abs().max() <= 2.0**-6 * scale


def test_float32_models_attend_in_float32() -> None:
    case = {"heads": (2, 32), "tokens": 3, "window": 3, "blocks": 2, "dtype": torch.float32}
    found = attended(FusedKernels(None, in_place=True), "fp32", **case)  # type: ignore[arg-type]
    expected = attended(PLAIN, "fp32", **case)  # type: ignore[arg-type]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@triton.jit  # type: ignore[untyped-decorator]
def _encode_all(X, OUT, NUM: tl.constexpr):  # type: ignore[name-defined]
    index = tl.arange(0, NUM)
    tl.store(OUT + index, triton_code._encode_e4m3(tl.load(X + index)))


@triton.jit  # type: ignore[untyped-decorator]
def _decode_all(X, OUT, NUM: tl.constexpr):  # type: ignore[name-defined]
    index = tl.arange(0, NUM)
    tl.store(OUT + index, triton_code.decode_e4m3(tl.load(X + index)))


def test_every_e4m3_number_is_decoded() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    found = torch.empty(256)
    _decode_all[(1,)](codes, found, NUM=256)
    assert torch.equal(found.nan_to_num(1e9), codes.view(FP8).float().nan_to_num(1e9))


def test_numbers_and_midpoints_are_rounded_as_pytorch_does() -> None:
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8).double()
    middles = (numbers[1:] + numbers[:-1]) / 2
    exact = torch.cat((numbers, middles, middles * (1 + 2**-22), middles * (1 - 2**-22))).float()
    x = torch.cat((exact, -exact, torch.tensor([math.nan, 1e-45, -1e-45])))
    x = torch.cat((x, x.new_zeros(1024 - len(x))))
    found = torch.empty(1024, dtype=torch.uint8)
    _encode_all[(1,)](x, found, NUM=1024)
    assert torch.equal(found & 0x7F, x.to(FP8).view(torch.uint8) & 0x7F)
    numbers_only = ~x.isnan()
    assert torch.equal(found[numbers_only], x.to(FP8).view(torch.uint8)[numbers_only])


def test_quantised_once_is_quantised_as_before() -> None:
    x = drawn(4, 48, seed=0, dtype=BF16)
    rows = PLAIN.rows(x, RowFormat(BF16, fp8=True))
    assert isinstance(rows, QuantisedRows)
    numbers, scale = quantise_rows_fp8(x)
    assert torch.equal(rows.numbers.view(torch.uint8), numbers.view(torch.uint8))
    assert torch.equal(rows.scale, scale)
