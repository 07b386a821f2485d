"""Case 11: the public implementation's 8-bit linear layer, and the layers it converts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lipcast.models.quant_formats import FP8_MAX, LEAST_SCALE, to_fp8
from lipcast.weights.quant import kept_because
from lipcast.weights.source import TensorInfo


def quantise_per_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3, float32 inverse scale []): s = min(448 / max|x|, 448), x·s rounded to bf16 first."""
    largest = x.abs().amax().float().clamp(min=LEAST_SCALE)
    scale = (FP8_MAX / largest).clamp(max=FP8_MAX)
    return to_fp8((x.float() * scale).bfloat16()), scale.reciprocal()


def linear_per_tensor(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """bf16( (q_x q_wᵀ) / (s_x s_w) + bias ), as the public implementation computes it."""
    q_x, inverse_x = quantise_per_tensor(x)
    q_w, inverse_w = quantise_per_tensor(weight)
    product = q_x.float() @ q_w.float().t()
    return (product * (inverse_x * inverse_w) + bias.float()).bfloat16()


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
