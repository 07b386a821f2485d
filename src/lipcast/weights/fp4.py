"""Matrix products of NVFP4 numbers on the matrix units of Blackwell.

Weights and activations are e2m1 floats with an e4m3 scale per 16 numbers of a row and one float32 scale
each; the block scales are laid out as those units read them. `fp4_support` tries the sizes of a model
when it is loaded, and compares one product with its emulation: a GPU that misreads the layout of the
scales is one without such products.
Off switch: `use_direct_products(module, enabled=False)`.

Legend: T tokens (rows), D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad

from lipcast.env import logger
from lipcast.models.quant_formats import (
    FP4_BLOCK,
    Fp4Rows,
    Rows,
    StoredWeight,
    quantise_rows_fp4,
)
from lipcast.planning.hardware import FP4_MAJORS
from lipcast.weights.products import TRIAL_ROWS, LayerSize, ScaledProduct, runs

_log = logger("weights.fp4")

_TILE_ROWS, _TILE_SCALES = 128, 4
"""Block scales are laid out in tiles of so many rows and scales of a row."""
_TRIAL_SIZE = (256, 128)
_TRIAL_ERROR = 0.01


def linear_fp4(
    x: Rows, weight: StoredWeight, bias: Tensor | None, *, multiply: ScaledProduct | None = None
) -> Tensor:
    """Return x [..., in] times an NVFP4 weight [out, in] plus bias [out].

    x is quantised, unless it is already. The product is summed in float32 and rounded to bf16; the
    result has the dtype of x. Raises RuntimeError or ValueError for a shape without a kernel.
    """
    rows = fp4_rows(x)
    assert weight.tensor_scale is not None
    recipe = [functional.ScalingType.BlockWise1x16, functional.ScalingType.TensorWise]
    layout = [functional.SwizzleType.SWIZZLE_32_4_4, functional.SwizzleType.NO_SWIZZLE]
    y_TO: Tensor = (multiply or functional.scaled_mm)(
        rows.numbers.flatten(0, -2).view(torch.float4_e2m1fn_x2),
        weight.numbers.view(torch.float4_e2m1fn_x2).t(),
        [swizzled(rows.scale.flatten(0, -2)), rows.tensor_scale],
        recipe,
        [swizzled(weight.scale), weight.tensor_scale],
        recipe,
        swizzle_a=layout,
        swizzle_b=layout,
        bias=None if bias is None else bias.bfloat16(),
        output_dtype=torch.bfloat16,
    )
    return y_TO.to(rows.dtype).view(*rows.numbers.shape[:-1], -1)


def fp4_rows(x: Rows) -> Fp4Rows:
    """Return the input of a layer in NVFP4."""
    if isinstance(x, Fp4Rows):
        return x
    return quantise_rows_fp4(x if isinstance(x, Tensor) else x.restore())


def swizzled(scale: Tensor) -> Tensor:
    """Return block scales [T, D / 16] in the order in which matrix units read them, in one piece.

    Tiles of 128 rows and 4 scales lie one after the other, and are filled up with zeros. In a tile the
    scales of row r and column c lie at 16 (r mod 32) + 4 (r div 32) + c.
    """
    rows, columns = scale.shape
    missing = -columns % _TILE_SCALES, -rows % _TILE_ROWS
    numbers = scale.view(torch.uint8)
    if any(missing):
        numbers = pad(numbers, (0, missing[0], 0, missing[1]))
    tiles = numbers.view(-(-rows // _TILE_ROWS), 4, 32, -(-columns // _TILE_SCALES), 4)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().view(scale.dtype).flatten()


@dataclass(frozen=True, slots=True)
class Fp4Support:
    """Which NVFP4 products a device has for the layers of a model."""

    works: bool
    refused: frozenset[LayerSize] = frozenset()

    def multiplies(self, size: LayerSize) -> bool:
        """Return whether layers of this size multiply NVFP4."""
        return self.works and size not in self.refused


def fp4_support(device: torch.device, sizes: Iterable[LayerSize] = ()) -> Fp4Support:
    """Return what a device multiplies, tried out on the (inputs, outputs) of a model's layers."""
    return _cached_support(device, frozenset(sizes))


@cache
def _cached_support(device: torch.device, sizes: frozenset[LayerSize]) -> Fp4Support:
    if device.type != "cuda" or not torch.cuda.is_available():
        return Fp4Support(False)
    if torch.cuda.get_device_capability(device)[0] not in FP4_MAJORS:
        return Fp4Support(False)
    return try_fp4(device, sizes)


def try_fp4(
    device: torch.device, sizes: Iterable[LayerSize], *, multiply: ScaledProduct | None = None
) -> Fp4Support:
    """Try products of every size, after one whose result is compared."""
    errors: list[float] = []
    if not runs(lambda: errors.append(_trial_error(device, multiply))):
        return Fp4Support(False)
    if errors and not errors[0] < _TRIAL_ERROR:
        _log.warning(
            "nvfp4: products on this GPU differ from their emulation by %.0f %%; NVFP4 weights are "
            "dequantised before use, which is slower. Install the current torch, or choose --precision fp8",
            100 * errors[0],
        )
        return Fp4Support(False)
    refused = {size for size in sizes if not runs(partial(_try_size, device, size, multiply))}
    return Fp4Support(True, frozenset(refused))


def has_fp4_matmul(device: torch.device) -> bool:
    """Return whether `linear_fp4` runs on this device's matrix units."""
    return fp4_support(device).works


def _trial_error(device: torch.device, multiply: ScaledProduct | None) -> float:
    """Return the relative error of a product whose blocks have very different scales."""
    num_in, num_out = _TRIAL_SIZE
    wave = torch.arange(2 * num_out * num_in, device=device, dtype=torch.float32).mul_(0.7).sin_()
    x, w = wave.mul_(torch.linspace(0.1, 9.0, len(wave), device=device)).view(2, num_out, num_in)
    weight, rows = quantise_rows_fp4(w), quantise_rows_fp4(x.bfloat16())
    stored = StoredWeight(weight.numbers, weight.scale, tensor_scale=weight.tensor_scale)
    found = linear_fp4(rows, stored, None, multiply=multiply).float()
    expected = rows.restore().float() @ weight.restore().t()
    return float((found - expected).norm() / expected.norm())


def _try_size(device: torch.device, size: LayerSize, multiply: ScaledProduct | None) -> None:
    num_in, num_out = size
    weight = _zeros(num_out, num_in, device)
    stored = StoredWeight(weight.numbers, weight.scale, tensor_scale=weight.tensor_scale)
    for num_rows in TRIAL_ROWS:
        linear_fp4(_zeros(num_rows, num_in, device), stored, None, multiply=multiply)


def _zeros(rows: int, columns: int, device: torch.device) -> Fp4Rows:
    numbers = torch.zeros(rows, columns // 2, dtype=torch.uint8, device=device)
    scale = torch.zeros(rows, columns // FP4_BLOCK, dtype=torch.uint8, device=device)
    one = torch.ones(1, device=device)
    return Fp4Rows(numbers, scale.view(torch.float8_e4m3fn), one, torch.bfloat16)
