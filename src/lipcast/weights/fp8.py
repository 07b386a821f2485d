"""Matrix products of 8-bit floats (e4m3) on the matrix units of a GPU.

The weight has one scale per output row, the activations one per token. Not every GPU, and on some
GPUs not every shape, has a kernel for such scales, and only a trial tells: `fp8_support` tries the
sizes of a model when it is loaded.
Off switch: `use_direct_products(module, enabled=False)`; the layer then multiplies by the dequantised
weight, as it does for every refused shape.

Legend: T tokens (rows), D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lipcast.models.quant_formats import FP8, Fp4Rows, Rows, StoredWeight, quantise_rows
from lipcast.weights.products import TRIAL_ROWS, LayerSize, ScaledProduct, runs

FIRST_CAPABILITY = (8, 9)
"""CUDA compute capability from which tensor cores multiply e4m3 (Ada, Hopper, Blackwell)."""
MIN_ROWS = 272
"""Products of fewer rows are padded to so many: with a scale per row, cuBLAS on Hopper refuses up
to 256 rows when the rows are long."""
SMALLEST_SIZE = (16, 16)

Fp8Kind = Literal["none", "per-tensor", "row-wise"]


def linear_row_wise(
    x: Rows,
    qweight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    multiply: ScaledProduct | None = None,
) -> Tensor:
    """Return x [..., in] times a weight (e4m3 [out, in], float32 scale [out]) plus bias [out].

    x is quantised per token, unless it is already. The product is summed in float32 and rounded to
    bf16; the result has the dtype of x. Raises RuntimeError for a shape without a kernel.
    """
    assert not isinstance(x, Fp4Rows)
    rows = quantise_rows(x) if isinstance(x, Tensor) else x
    q_TD, scale_T1 = rows.numbers.flatten(0, -2), rows.scale.flatten(0, -2)
    num_rows = q_TD.shape[0]
    num_missing = max(0, MIN_ROWS - num_rows)
    if num_missing:
        # Padded as bytes: `pad` knows no 8-bit floats, and the byte 0 is the number 0.
        q_TD = pad(q_TD.view(torch.uint8), (0, 0, 0, num_missing)).view(FP8)
        scale_T1 = pad(scale_T1, (0, 0, 0, num_missing), value=1.0)
    y_TO: Tensor = (multiply or torch._scaled_mm)(
        q_TD,
        qweight.t(),
        scale_a=scale_T1,
        scale_b=scale[None],
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return y_TO[:num_rows].to(rows.dtype).view(*rows.numbers.shape[:-1], -1)


def linear_fp8(x: Rows, weight: StoredWeight, bias: Tensor | None) -> Tensor:
    """Return what `linear_row_wise` does with a stored weight."""
    return linear_row_wise(x, weight.numbers, weight.scale, bias)


@dataclass(frozen=True, slots=True)
class Fp8Support:
    """Which 8-bit products a device has for the layers of a model.

    `kind`: "row-wise" is what the engine multiplies with; with "per-tensor" (GeForce RTX 50) or
    "none" it dequantises every weight. `refused`: the sizes for which row-wise products fail.
    """

    kind: Fp8Kind
    refused: frozenset[LayerSize] = frozenset()

    def multiplies(self, size: LayerSize) -> bool:
        """Return whether layers of this size multiply 8-bit floats."""
        return self.kind == "row-wise" and size not in self.refused


def fp8_support(device: torch.device, sizes: Iterable[LayerSize] = ()) -> Fp8Support:
    """Return what a device multiplies, tried out on the (inputs, outputs) of a model's layers."""
    return _cached_support(device, frozenset(sizes))


@cache
def _cached_support(device: torch.device, sizes: frozenset[LayerSize]) -> Fp8Support:
    if device.type != "cuda" or not torch.cuda.is_available():
        return Fp8Support("none")
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return Fp8Support("none")
    return try_fp8(device, sizes)


def try_fp8(
    device: torch.device, sizes: Iterable[LayerSize], *, multiply: ScaledProduct | None = None
) -> Fp8Support:
    """Try row-wise products of every size, and a product with one scale per tensor."""

    def has_kernel(size: LayerSize) -> bool:
        return runs(lambda: _row_wise_trial(device, size, multiply))

    if has_kernel(SMALLEST_SIZE):
        return Fp8Support("row-wise", frozenset(size for size in sizes if not has_kernel(size)))
    per_tensor = runs(lambda: _per_tensor_trial(device, multiply))
    return Fp8Support("per-tensor" if per_tensor else "none")


def has_fp8_matmul(device: torch.device) -> bool:
    """Return whether `linear_row_wise` runs on this device's matrix units."""
    return fp8_support(device).kind == "row-wise"


def _row_wise_trial(device: torch.device, size: LayerSize, multiply: ScaledProduct | None) -> None:
    num_in, num_out = size
    weight = torch.zeros(num_out, num_in, dtype=torch.uint8, device=device).view(FP8)
    scale = torch.ones(num_out, device=device)
    for num_rows in TRIAL_ROWS:
        x = torch.zeros(num_rows, num_in, dtype=torch.bfloat16, device=device)
        linear_row_wise(x, weight, scale, None, multiply=multiply)


def _per_tensor_trial(device: torch.device, multiply: ScaledProduct | None) -> None:
    x = torch.zeros(16, 16, dtype=torch.uint8, device=device).view(FP8)
    one = torch.ones((), device=device)
    product = multiply or torch._scaled_mm
    product(x, x.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
