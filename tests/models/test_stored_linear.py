"""Products with stored weights: the fused kernel, in Triton's interpreter, against its plain twin."""

from __future__ import annotations

import pytest
import torch
import triton_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcast.config.precision import StoredPrecision
from lipcast.models.dit import apply_kernels
from lipcast.models.kernels import stored_linear
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.quant_formats import StoredWeight
from lipcast.weights.quant_linear import QuantLinear
from lipcast.weights.schemes import SCHEMES, stored_weight
from profiles import examples

assert triton_interpreter
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities are meant
PLAIN, FUSED = Kernels(), FusedKernels(None)
PRECISIONS: tuple[StoredPrecision, ...] = ("int4", "int8", "fp8")
BF16 = torch.bfloat16


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(precision: StoredPrecision, weight: Tensor) -> StoredWeight:
    return stored_weight(SCHEMES[precision].quantise(weight))


def assert_same_product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> None:
    """Both restore the same numbers; sums differ by their order and one rounding."""
    found, expected = FUSED.linear(x, weight, bias), PLAIN.linear(x, weight, bias)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    exact = x.double() @ weight.restore(x.dtype).double().t()
    exact = exact if bias is None else exact + bias.double()
    size = x.double().abs() @ weight.restore(x.dtype).double().abs().t()
    step = 2.0**-8 if x.dtype == BF16 else 2.0**-20
    limit = step * exact.abs() + 2.0**-18 * (size if bias is None else size + bias.double().abs())
    finite = exact.isfinite()
    assert ((found.double() - exact).abs()[finite] <= limit[finite] + 1e-37).all()
    assert torch.equal(found.isfinite() | ~expected.isfinite(), torch.ones_like(finite))


@settings(max_examples=examples(25))
@given(
    precision=st.sampled_from(PRECISIONS),
    tokens=st.sampled_from([1, 3, 33, 65, 130]),
    outputs=st.sampled_from([1, 17, 64, 130]),
    inputs=st.sampled_from([32, 64, 96, 160, 192]),
    magnitudes=st.tuples(*[st.sampled_from([0.0, 1e-20, 1.0, 1e4])] * 2),
    has_bias=st.booleans(),
    dtype=st.sampled_from([BF16, torch.float32]),
)
def test_it_is_the_product_with_the_restored_weight(
    precision: StoredPrecision,
    tokens: int,
    outputs: int,
    inputs: int,
    magnitudes: tuple[float, float],
    has_bias: bool,
    dtype: torch.dtype,
) -> None:
    """Sides that no tile divides, one and several groups in a row, zeros and extreme numbers."""
    weight = stored(precision, drawn(outputs, inputs, seed=tokens) * magnitudes[0])
    x = (drawn(tokens, inputs, seed=outputs) * magnitudes[1]).to(dtype)
    bias = drawn(outputs, seed=3).to(BF16) if has_bias else None
    assert_same_product(x, weight, bias)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_rows_with_nan_or_infinity_are_touched_by_them(precision: StoredPrecision) -> None:
    weight, x = stored(precision, drawn(70, 96)), drawn(40, 96).to(BF16)
    x[3, 95], x[39, 0] = torch.inf, torch.nan
    found = FUSED.linear(x, weight, None)
    touched = torch.tensor([3, 39])
    assert found[39].isnan().all() and not found[3].isfinite().any()
    rest = torch.ones(40, dtype=torch.bool).index_fill(0, touched, False)
    assert_same_product(x[rest], weight, None)


def test_every_four_bit_number_in_every_place() -> None:
    """The identity reads the weight out, bit for bit as the plain twin restores it."""
    weight = stored("int4", drawn(5, 128) * torch.tensor([1e-3, 1.0, 7.0, 300.0, 0.0])[:, None])
    identity = torch.eye(128, dtype=BF16)
    assert torch.equal(FUSED.linear(identity, weight, None).t(), weight.restore(BF16))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_leading_axes_are_kept(precision: StoredPrecision) -> None:
    weight, x = stored(precision, drawn(48, 64)), drawn(2, 3, 4, 64).to(BF16)
    found = FUSED.linear(x.transpose(0, 1), weight, None)
    assert found.shape == (3, 2, 4, 48)
    flat = FUSED.linear(x.transpose(0, 1).reshape(-1, 64), weight, None)
    assert torch.equal(found.flatten(0, 2), flat)
    assert FUSED.linear(x[:0], weight, None).shape == (0, 3, 4, 48)


def test_short_groups_are_restored_before() -> None:
    weight = stored("int4", drawn(16, 24))
    assert weight.group == 8 and not stored_linear.has_whole_groups(weight)
    x = drawn(5, 24).to(BF16)
    assert torch.equal(FUSED.linear(x, weight, None), PLAIN.linear(x, weight, None))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layer_computes_with_the_kernels_of_its_model(
    precision: StoredPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--kernels` decides; with fused ones no weight is restored outside the product."""
    linear = nn.Linear(64, 32)
    layer = QuantLinear(linear, SCHEMES[precision], dtype=BF16)
    layer.fill(SCHEMES[precision].quantise(linear.weight.detach()))
    x = drawn(7, 64).to(BF16)
    plain = layer(x)
    apply_kernels(nn.Sequential(layer), FUSED)
    monkeypatch.setattr(StoredWeight, "restore", None)
    torch.testing.assert_close(layer(x), plain, atol=2.0**-9, rtol=2.0**-7)
    monkeypatch.undo()
    apply_kernels(nn.Sequential(layer), PLAIN)
    assert torch.equal(layer(x), plain)
