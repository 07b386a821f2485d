"""Matrix products of 8-bit floats (e4m3).

The engine's way: one scale per output row of the weight and one per token, `linear_row_wise`.
The public implementation's way: one scale per tensor, never above 448, so that tensors with small
values do not use the whole range; `linear_per_tensor` reproduces its numbers bit for bit.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lipcast.weights.schemes import FP8_MAX, TINY

FP8 = torch.float8_e4m3fn
FIRST_CAPABILITY = (8, 9)
"""CUDA compute capability from which tensor cores multiply e4m3 (Ada, Hopper, Blackwell)."""


def quantise_tokens(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [T, D], float32 scale [T, 1]) with x = q * scale."""
    scale_T1 = x_TD.abs().amax(dim=-1, keepdim=True).float().div_(FP8_MAX).clamp_(min=TINY)
    return (x_TD / scale_T1).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scale_T1


def linear_row_wise(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times a weight (e4m3 [out, in], float32 scale [out]); x is quantised per token.

    The product is summed in float32 and rounded to bf16; the result has the dtype of x.
    """
    q_TD, scale_T1 = quantise_tokens(x.flatten(0, -2))
    y_TO: Tensor = torch._scaled_mm(
        q_TD,
        qweight.t(),
        scale_a=scale_T1,
        scale_b=scale[None],
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return y_TO.to(x.dtype).view(*x.shape[:-1], -1)


@cache
def has_fp8_matmul(device: torch.device) -> bool:
    """Whether `linear_row_wise` runs on this device's matrix units: tried out, not looked up."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return False
    x = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        linear_row_wise(x, x.to(FP8), torch.ones(16, device=device), None)
    except (RuntimeError, AttributeError, TypeError):
        # This PyTorch has no kernel for row scales on this card: weights are dequantised instead.
        return False
    return True


def quantise_per_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3, float32 inverse scale []): s = min(448 / max|x|, 448), x·s rounded to bf16 first."""
    largest = x.abs().amax().float().clamp(min=TINY)
    scale = (FP8_MAX / largest).clamp(max=FP8_MAX)
    scaled = (x.float() * scale).bfloat16().clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(FP8), scale.reciprocal()


def linear_per_tensor(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """bf16( (q_x q_wᵀ) / (s_x s_w) + bias ), as the public implementation computes it."""
    q_x, inverse_x = quantise_per_tensor(x)
    q_w, inverse_w = quantise_per_tensor(weight)
    product = q_x.float() @ q_w.float().t()
    return (product * (inverse_x * inverse_w) + bias.float()).bfloat16()
