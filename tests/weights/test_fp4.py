"""NVFP4: its numbers against an independent computation, the layout of scales, products and trials."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.models.quant_formats import Fp4Rows, StoredWeight, quantise_rows_fp4
from lipcast.weights import quant_linear
from lipcast.weights.fp4 import Fp4Support, fp4_support, linear_fp4, swizzled, try_fp4
from lipcast.weights.products import DirectProducts
from lipcast.weights.quant_linear import (
    QuantLinear,
    multiplies_directly,
    use_direct_products,
    use_products_of_device,
)
from lipcast.weights.schemes import SCHEMES
from profiles import examples

CPU = torch.device("cpu")
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The e2m1 numbers in the order of their bits."""
SCHEME = SCHEMES["nvfp4"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def number_of(code: int) -> float:
    return (-1 if code & 8 else 1) * NUMBERS[code & 7]


def decoded(numbers: Tensor, scale: Tensor, tensor_scale: Tensor) -> Tensor:
    """What is stored, number by number, in float64."""
    rows = [
        [number_of(code) for byte in row for code in (byte & 15, byte >> 4)]
        for row in numbers.tolist()
    ]
    blocks = torch.tensor(rows, dtype=torch.float64).unflatten(-1, (-1, 16))
    return (blocks * scale.double()[..., None] * tensor_scale.double()).flatten(-2)


def place(row: int, column: int, columns: int) -> int:
    """Where cuBLAS looks for the scale of a row and a column of blocks: its documented formula."""
    tiles = -(-columns // 4)
    tile = (row // 128) * tiles + column // 4
    return tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4


def unswizzled(scale: Tensor, rows: int, columns: int) -> Tensor:
    places = [[place(r, c, columns) for c in range(columns)] for r in range(rows)]
    return scale.view(torch.uint8)[torch.tensor(places)].view(scale.dtype)


def emulated(a: Tensor, b: Tensor, scale_a: Any, recipe_a: Any, *args: Any, **named: Any) -> Tensor:
    """`scaled_mm` as Blackwell computes it, in float64; arguments are checked as PyTorch checks them."""
    scale_b, recipe_b = args
    blocks, tensor = functional.ScalingType.BlockWise1x16, functional.ScalingType.TensorWise
    assert recipe_a == recipe_b == [blocks, tensor]
    swizzle = [functional.SwizzleType.SWIZZLE_32_4_4, functional.SwizzleType.NO_SWIZZLE]
    assert named["swizzle_a"] == named["swizzle_b"] == swizzle
    assert a.dtype == b.dtype == torch.float4_e2m1fn_x2
    assert a.is_contiguous() and b.t().is_contiguous() and a.shape[1] == b.shape[0]
    columns, exact = a.shape[1] // 8, []
    for numbers, (scale, tensor_scale) in ((a, scale_a), (b.t(), scale_b)):
        rows = len(numbers)
        assert scale.dtype == torch.float8_e4m3fn and scale.is_contiguous()
        assert scale.numel() == -(-rows // 128) * 128 * -(-columns // 4) * 4
        assert tensor_scale.dtype == torch.float32 and tensor_scale.shape == (1,)
        plain = unswizzled(scale, rows, columns)
        exact.append(decoded(numbers.view(torch.uint8), plain, tensor_scale))
    product = exact[0] @ exact[1].t()
    bias = named["bias"]
    assert bias is None or bias.dtype == torch.bfloat16
    return (product if bias is None else product + bias.double()).to(named["output_dtype"])


def stored(weight: Tensor) -> StoredWeight:
    parts = SCHEME.quantise(weight)
    return StoredWeight(parts["qweight"], parts["scale"], tensor_scale=parts["tensor_scale"])


def fp4_layer(num_in: int = 64, num_out: int = 48) -> QuantLinear:
    torch.manual_seed(num_in)
    linear = nn.Linear(num_in, num_out)
    layer = QuantLinear(linear, SCHEME, dtype=torch.bfloat16).requires_grad_(False)
    layer.fill(SCHEME.quantise(linear.weight.detach()))
    return layer


@given(
    rows=st.integers(1, 3),
    blocks=st.integers(1, 5),
    power=st.integers(-30, 30),
    kind=st.sampled_from(["normal", "zero", "constant", "outlier"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(30), deadline=None)
def test_numbers_are_the_nearest_and_restored_exactly(
    rows: int, blocks: int, power: int, kind: str, seed: int
) -> None:
    shape = rows, 16 * blocks
    x = {
        "normal": drawn(*shape, seed=seed),
        "zero": torch.zeros(shape),
        "constant": torch.full(shape, -0.3),
        "outlier": drawn(*shape, seed=seed) + 50 * torch.eye(*shape),
    }[kind] * 2.0**power
    found = quantise_rows_fp4(x)
    exact = decoded(found.numbers, found.scale, found.tensor_scale)
    assert torch.equal(found.restore(), exact.float())
    half = Fp4Rows(found.numbers, found.scale, found.tensor_scale, torch.bfloat16).restore()
    assert torch.equal(half, exact.bfloat16())
    step = (found.scale.float() * found.tensor_scale).repeat_interleave(16, -1).double()
    grid = torch.tensor([number_of(code) for code in range(16)], dtype=torch.float64)
    distance = (x.double()[..., None] - step[..., None] * grid).abs().amin(-1)
    # A quotient is rounded before it is compared with the middle of two numbers.
    assert ((x.double() - exact).abs() <= distance + 1e-6 * step).all()
    assert (found.tensor_scale * 6 * 448 >= x.abs().max() * (1 - 1e-6)).all()


def test_every_number_survives_and_ties_are_even() -> None:
    codes = torch.tensor([[number_of(code) for code in range(16)]])
    found = quantise_rows_fp4(codes)
    assert torch.allclose(found.restore(), codes, rtol=2.0**-22, atol=0)
    assert sorted(found.numbers.view(-1).tolist()) == sorted(0x10 + 0x22 * i for i in range(8))
    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2])
    expected = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0] * 2])
    assert torch.allclose(quantise_rows_fp4(ties).restore(), expected, rtol=2.0**-22, atol=0)
    assert quantise_rows_fp4(torch.full((1, 16), torch.nan)).restore().isnan().all()
    assert quantise_rows_fp4(torch.zeros(0, 16)).restore().shape == (0, 16)


def test_a_weight_takes_four_and_a_half_bits_and_the_least_error() -> None:
    weight = drawn(32, 640) * 0.02
    parts = SCHEME.quantise(weight)
    promised = SCHEME.part_shapes(32, 640)
    assert {n: (tuple(p.shape), p.dtype) for n, p in parts.items()} == promised
    assert sum(part.nbytes for part in parts.values()) == 32 * 640 * 4.5 / 8 + 4
    restored = SCHEME.dequantise(parts, torch.float32)
    exact = decoded(parts["qweight"], parts["scale"], parts["tensor_scale"])
    assert torch.equal(restored, exact.float())
    plain = quantise_rows_fp4(weight).restore()
    assert (restored - weight).norm() < 0.93 * (plain - weight).norm()
    assert SCHEME.fits(48) and not SCHEME.fits(40) and not SCHEME.fits(0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (130, 5), (300, 20)])
def test_scales_lie_where_the_matrix_units_look(rows: int, columns: int) -> None:
    scale = torch.arange(rows * columns).remainder(126).to(torch.uint8).view(rows, columns)
    found = swizzled(scale.view(torch.float8_e4m3fn)).view(torch.uint8)
    expected = torch.zeros(-(-rows // 128) * 128 * -(-columns // 4) * 4, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            expected[place(row, column, columns)] = scale[row, column]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [1, 15, 130])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_of_the_stored_numbers(rows: int, has_bias: bool) -> None:
    weight, x = stored(drawn(48, 96)), drawn(2, rows, 96, seed=1).bfloat16()
    bias = drawn(48, seed=2) if has_bias else None
    found = linear_fp4(x, weight, bias, multiply=emulated)
    expected = quantise_rows_fp4(x).restore().double() @ weight.restore(torch.float32).double().t()
    if bias is not None:
        expected += bias.bfloat16().double()
    assert (found.shape, found.dtype) == ((2, rows, 48), torch.bfloat16)
    assert (found.double() - expected).norm() < 0.005 * expected.norm()
    again = linear_fp4(quantise_rows_fp4(x), weight, bias, multiply=emulated)
    assert torch.equal(again, found)


@pytest.mark.slow
def test_pytorch_takes_the_call_on_a_gpu() -> None:
    """With its own checks of shapes and dtypes, on fake tensors."""
    weight = stored(drawn(48, 96))
    with fake_cuda(capability=(10, 0)):
        parts = (weight.numbers, weight.scale, weight.tensor_scale)
        numbers, scale, of_all = (torch.empty_like(part, device=DEVICE) for part in parts)
        on_gpu = StoredWeight(numbers, scale, tensor_scale=of_all)
        x = torch.empty(3, 5, 96, dtype=torch.bfloat16, device=DEVICE)
        y = linear_fp4(x, on_gpu, torch.empty(48, device=DEVICE))
    assert (y.shape, y.dtype, y.device) == ((3, 5, 48), torch.bfloat16, DEVICE)


def test_a_device_is_tried_and_its_product_compared(caplog: pytest.LogCaptureFixture) -> None:
    def fussy(a: Tensor, *args: Any, **named: Any) -> Tensor:
        if a.shape[1] > 128:
            raise ValueError("mat2 shape must be divisible by something")
        return emulated(a, *args, **named)

    def misreading(a: Tensor, b: Tensor, scale_a: Any, *args: Any, **named: Any) -> Tensor:
        scale, of_all = scale_a
        return emulated(
            a, b, [scale.view(torch.uint8).flip(0).view(scale.dtype), of_all], *args, **named
        )

    sizes = [(64, 48), (512, 16)]
    assert try_fp4(CPU, sizes, multiply=fussy) == Fp4Support(True, frozenset({(512, 16)}))
    assert not caplog.records
    assert try_fp4(CPU, sizes, multiply=misreading) == Fp4Support(False)
    assert "differ from their emulation" in caplog.text
    assert try_fp4(CPU, sizes) == Fp4Support(False), "a CPU has no such product"
    assert fp4_support(CPU, sizes) == Fp4Support(False)
    assert not multiplies_directly(CPU, "nvfp4", sizes)


def test_layers_without_a_product_are_dequantised_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layers = nn.ModuleList([fp4_layer(64, 48), fp4_layer(96, 48), fp4_layer(80, 48)])
    support = Fp4Support(True, frozenset({(96, 48)}))
    monkeypatch.setitem(quant_linear._SUPPORT, "nvfp4", lambda *_: support)
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        use_products_of_device(layers, torch.device("cuda", 0))
    assert [layer.multiplies for layer in layers] == ["nvfp4", None, None]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "(80, 48), (96, 48)" in told and "dequantised" in told
    use_direct_products(layers, enabled=False)
    assert not any(layer.multiplies for layer in layers)
    use_direct_products(layers, enabled=True)
    assert [layer.multiplies for layer in layers] == ["nvfp4", "nvfp4", None]


def test_a_refused_shape_is_dequantised(caplog: pytest.LogCaptureFixture) -> None:
    layer, x = fp4_layer(), drawn(15, 64).bfloat16()
    expected = layer(x)
    layer.products = DirectProducts("nvfp4", linear_fp4)  # a CPU refuses
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(quantise_rows_fp4(x)), layer(quantise_rows_fp4(x).restore()))
    assert layer.products.refused == {(15, 64, 48)}
    assert len(caplog.records) == 1 and "15 rows, 64 inputs" in caplog.text


def test_layers_are_not_joined_over_their_own_scales() -> None:
    layers = [fp4_layer(), fp4_layer()]
    assert layers[0].joined_product(layers, drawn(3, 64)) is None
