"""Case 11: the public implementation's 8-bit linear layer, and the layers it converts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lipcast.weights.fp8 import linear_per_tensor, quantise_per_tensor
from lipcast.weights.quant import kept_because
from lipcast.weights.source import TensorInfo


@pytest.fixture
def case(golden: Callable[[str], Any]) -> Any:
    return golden("case11")


def parts(case: Any) -> list[str]:
    return sorted({name.split("/")[1] for name in case.names if name.startswith("inputs/")})


def test_quantised_values_are_exact(case: Any) -> None:
    assert parts(case)
    for part in parts(case):
        for side in ("weight", "x"):
            q, inverse_scale = quantise_per_tensor(case[f"inputs/{part}/{side}"])
            expected = case[f"outputs/{part}/{side}_fp8_as_f32"]
            assert torch.equal(q.float().reshape(expected.shape), expected), (part, side)
            torch.testing.assert_close(
                inverse_scale, case[f"outputs/{part}/{side}_inv_scale"], rtol=1e-7, atol=0
            )


def ulps(left: torch.Tensor, right: torch.Tensor) -> int:
    """Largest distance in representable bf16 numbers."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(left) - ordered(right)).abs().max())


@pytest.mark.parametrize("expected", ["y_emulated", "y_scaled_mm"])
def test_outputs_are_exact_or_next_to_it(case: Any, expected: str) -> None:
    for part in parts(case):
        x, weight, bias = (case[f"inputs/{part}/{name}"] for name in ("x", "weight", "bias"))
        assert ulps(linear_per_tensor(x, weight, bias), case[f"outputs/{part}/{expected}"]) <= 1


def test_the_same_layers_stay_high_precision(case: Any) -> None:
    def kept(layer: str) -> bool:
        info = TensorInfo(f"{layer}.weight", (64, 64), torch.bfloat16)
        return kept_because(info) is not None

    assert all(kept(layer) for layer in case.meta["kept_linear"])
    assert not any(kept(layer) for layer in case.meta["fp8_layers"])
