"""Products with int4, int8 and fp8 weights read in place: right, and how fast beside restoring them first."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gpu.report import Report, Settings
from gpu.timing import median_ms
from lipcast.config.models import DiTConfig
from lipcast.config.precision import StoredPrecision
from lipcast.models.kernels.choice import choose_kernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.quant_formats import StoredWeight
from lipcast.planning.costs import gemm_flops_per_s
from lipcast.planning.hardware import gpu_described
from lipcast.weights.schemes import SCHEMES, stored_weight

PRECISIONS: tuple[StoredPrecision, ...] = ("int4", "int8", "fp8")
_MOST_ERROR = 4e-3
_SIZES = ((5120, 5120), (5120, 13_824), (13_824, 5120))
"""Inputs and outputs of the model's layers."""


def drawn(precision: StoredPrecision, num_in: int, num_out: int) -> StoredWeight:
    """A stored weight on the default device."""
    return stored_weight(SCHEMES[precision].quantise(torch.randn(num_out, num_in) * 0.02))


def compare_products(report: Report, fused: Kernels) -> None:
    """Claim that fused products are those of their plain twin; many tokens and few."""
    for precision in PRECISIONS:
        text = f"products with {precision} weights are within {_MOST_ERROR:.1%} of restored ones"
        with report.attempt(text):
            weight, bias = drawn(precision, 5120, 1024), torch.randn(1024).bfloat16()
            errors = []
            for tokens in (15, 1056):
                x = torch.randn(tokens, 5120).bfloat16()
                one, other = (k.linear(x, weight, bias).double() for k in (fused, Kernels()))
                errors.append(float((one - other).norm() / other.norm()))
            report.claim(text, max(errors) <= _MOST_ERROR, errors)


def products(settings: Settings, report: Report) -> None:
    """Milliseconds of a layer's product with 3168 tokens, in place and restored first."""
    chosen = choose_kernels("auto", settings.device, DiTConfig())
    if chosen.kernels.name != "triton":
        report.skip("products read stored weights in place", chosen.reason)
        return
    properties = torch.cuda.get_device_properties(settings.device)
    card = gpu_described(
        properties.name, properties.total_memory, torch.cuda.get_device_capability(settings.device)
    )
    with torch.inference_mode(), torch.device(settings.device):
        for precision in PRECISIONS:
            _time(precision, gemm_flops_per_s(card, "int4"), chosen.kernels, settings, report)


def _time(
    precision: StoredPrecision, rate: float, fused: Kernels, settings: Settings, report: Report
) -> None:
    flop = milliseconds = 0.0
    for num_in, num_out in _SIZES:
        x: Tensor = torch.randn(3168, num_in).bfloat16()
        weight = drawn(precision, num_in, num_out)
        both = [
            median_ms(partial(kernels.linear, x, weight, None), settings)
            for kernels in (fused, Kernels())
        ]
        report.figure(f"{precision} {num_in}x{num_out} ms, in place and restored", both)
        flop, milliseconds = flop + 2.0 * x.numel() * num_out, milliseconds + both[0]
    reached = 1e3 * flop / milliseconds
    text = f"products with {precision} weights are as fast as planned, within 15 %"
    report.claim(text, reached >= 0.85 * rate, f"{reached:.3g} of {rate:.3g} FLOP/s")
