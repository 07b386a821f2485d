"""8-bit products: padding of few rows, refused shapes, and what a device is found to have."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from lipcast.weights import quant_linear
from lipcast.weights.fp8 import MIN_ROWS, Fp8Support, fp8_support, linear_row_wise, try_fp8
from lipcast.weights.products import DirectProducts
from lipcast.weights.quant_linear import QuantLinear, use_direct_products, use_products_of_device
from lipcast.weights.schemes import SCHEMES

CPU = torch.device("cpu")
NOT_SUPPORTED = "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul"


def fp8_layer(num_in: int = 32, num_out: int = 48) -> QuantLinear:
    torch.manual_seed(num_in)
    linear = nn.Linear(num_in, num_out)
    layer = QuantLinear(linear, SCHEMES["fp8"], dtype=torch.bfloat16)
    layer.fill(SCHEMES["fp8"].quantise(linear.weight.detach()))
    return layer


def fussy(*, least_rows: int = 0, most_inputs: int = 10**9, per_token: bool = True) -> Any:
    """A `_scaled_mm` that refuses few rows, long rows, or scales per token."""

    def multiply(q: torch.Tensor, weight: torch.Tensor, **arguments: Any) -> torch.Tensor:
        is_per_token = arguments["scale_a"].dim() > 0
        too_few = is_per_token and q.shape[0] < least_rows
        if too_few or q.shape[1] > most_inputs or (is_per_token and not per_token):
            raise RuntimeError(NOT_SUPPORTED)
        return torch.empty(q.shape[0], weight.shape[1], dtype=torch.bfloat16)

    return multiply


@pytest.mark.parametrize("num_rows", [1, 15, MIN_ROWS - 1, MIN_ROWS, MIN_ROWS + 5])
def test_few_rows_are_padded_and_come_back_alone(num_rows: int) -> None:
    seen: list[int] = []

    def multiply(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(q.shape[0])
        return torch._scaled_mm(q, *args, **kwargs)

    layer = fp8_layer()
    x = torch.randn(num_rows, 32, dtype=torch.bfloat16)
    args = (x, layer.qweight, layer.scale, layer.bias)
    y = linear_row_wise(*args, multiply=multiply)
    assert seen == [max(MIN_ROWS, num_rows)]
    assert y.shape == (num_rows, 48)
    slow = layer(x).float()
    assert (y.float() - slow).norm() / slow.norm() < 0.05


def test_a_refused_shape_is_dequantised_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def multiply(x: torch.Tensor, *_: Any) -> torch.Tensor:
        calls.append(len(x))
        raise RuntimeError(NOT_SUPPORTED)

    layer = fp8_layer()
    x = torch.randn(15, 32, dtype=torch.bfloat16)
    expected = layer(x)
    layer.products = DirectProducts("fp8", multiply)
    with caplog.at_level(logging.WARNING, logger="lipcast"):
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
        layer(x[:3])
    assert calls == [15, 3]
    assert layer.products.refused == {(15, 32, 48), (3, 32, 48)}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "15 rows, 32 inputs and 48 outputs" in told[0] and "NOT_SUPPORTED" in told[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=["memory", "broken", "cublas_memory"],
)
def test_other_failures_are_not_taken_for_a_refusal(error: RuntimeError) -> None:
    def multiply(*_: Any) -> torch.Tensor:
        raise error

    layer = fp8_layer()
    layer.products = DirectProducts("fp8", multiply)
    with pytest.raises(type(error)):
        layer(torch.zeros(1, 32))
    assert not layer.products.refused


def test_a_device_is_tried_on_the_sizes_of_the_model() -> None:
    sizes = [(64, 32), (4096, 32)]
    assert try_fp8(CPU, sizes, multiply=fussy()) == Fp8Support("row-wise")
    few = try_fp8(CPU, sizes, multiply=fussy(most_inputs=2048))
    assert few == Fp8Support("row-wise", frozenset({(4096, 32)}))
    assert few.multiplies((64, 32)) and not few.multiplies((4096, 32))
    assert try_fp8(CPU, sizes, multiply=fussy(least_rows=257)) == Fp8Support("row-wise")
    assert try_fp8(CPU, sizes, multiply=fussy(per_token=False)) == Fp8Support("per-tensor")
    none = try_fp8(CPU, sizes, multiply=fussy(most_inputs=8))
    assert none == Fp8Support("none") and not none.multiplies((64, 32))
    assert fp8_support(CPU, sizes) == Fp8Support("none")


def test_the_trial_runs_with_the_real_product() -> None:
    assert try_fp8(CPU, [(32, 48)]) == Fp8Support("row-wise")


def test_layers_of_refused_sizes_stay_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([fp8_layer(32, 48), fp8_layer(64, 48), fp8_layer(24, 48)])
    asked: list[Any] = []

    def support(device: torch.device, sizes: Any) -> Fp8Support:
        asked.extend(sizes)
        return Fp8Support("row-wise", frozenset({(64, 48)}))

    monkeypatch.setitem(quant_linear._SUPPORT, "fp8", support)
    use_products_of_device(layers, CPU)
    assert asked == [(32, 48), (64, 48)]
    assert [layer.multiplies for layer in layers] == ["fp8", None, None]
    use_direct_products(layers, enabled=False)
    assert not any(layer.multiplies for layer in layers)
