"""The autoencoder's chains in two fused kernels: norm with SiLU, and causal convolution.

`FusedConvKernels` has the methods of `ConvKernels`, which is its plain twin. Each operator of
`torch.ops.lipcast` is one launch, and on fake tensors gives shapes and dtypes. Tensors are contiguous,
weights [O, T, K, K, I] in memory (`channels_last_3d`). Sums are float32 and rounded once, where the plain
twin rounds after every operation.

Layout: activations x_THWC (T frames, H height, W width, C channels).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lipcast.models.kernels.register import Operator, register_operators
from lipcast.models.vae_kernels import ConvKernels, ConvStep, newest_frames

NORM_SILU = "norm_silu"
CONVOLVE = "causal_conv3d"
_SCHEMAS = {
    NORM_SILU: "(Tensor x, Tensor gamma, int num_kept) -> (Tensor, Tensor)",
    CONVOLVE: "(Tensor x, Tensor weight, Tensor bias, Tensor? past, Tensor? beside, int num_frames,"
    " int num_past, int stride_t, int stride, int pad, bool up, int pieces, ScalarType dtype) -> Tensor",
}
_NUMBERS_PER_PROGRAM = 4096
_LARGE_SHARED_BYTES, _LEAST_SHARED_BYTES = 160 * 1024, 96 * 1024
"""Shared memory of a block: more than the first on A100, H100, B200; 99 KiB on a GeForce RTX 30 to 50."""


class FusedConvKernels(ConvKernels):
    """Computes chains of steps in Triton, in 16-bit numbers, on a GPU."""

    any_batch = True

    def activate(
        self, step: ConvStep, x_THWC: Tensor, *, past: Tensor | None, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        del num_frames  # the convolution repeats the last frame
        if step.gamma_I is None:
            return x_THWC, newest_frames(x_THWC, past, step.num_past)
        num_kept = min(step.num_past, x_THWC.shape[0])
        out, kept = torch.ops.lipcast.norm_silu(x_THWC, step.gamma_I, num_kept)
        return out, newest_frames(kept, past, step.num_past) if num_kept < step.num_past else kept

    def convolve(
        self,
        step: ConvStep,
        x_THWC: Tensor,
        *,
        past: Tensor | None,
        beside: Tensor | None,
        num_frames: int,
        dtype: torch.dtype,
    ) -> Tensor:
        result: Tensor = torch.ops.lipcast.causal_conv3d(
            x_THWC, step.weight_OITKK, step.bias_O, past,
            None if beside is None else self.shortcut(step, beside),
            num_frames, step.num_past, step.stride_t, step.stride, step.pad, step.up,
            1 + step.doubles_frames, dtype,
        )  # fmt: skip
        return result


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of the convolution computes: pixels, output channels, input channels a step."""

    TILE_H: int
    TILE_W: int
    BLOCK: int
    TAIL: int
    DEPTH: int

    @classmethod
    def of(cls, in_channels: int, out_channels: int, *, large_shared: bool) -> Tile:
        """Return the tile for these channels; nothing of it depends on the number of frames."""
        third, rest = divmod(out_channels, 3)
        if rest == 0 and third >= 16 and third & (third - 1) == 0:
            block, tail = min(128, 2 * third), min(64, third)
        else:
            block, tail = _power_of_two(out_channels, 16, 128), 0
        is_wide = block + tail > 96
        deepest = 64 if is_wide and large_shared and in_channels % 64 == 0 else 32
        return cls(8 if is_wide else 16, 16, block, tail, _power_of_two(in_channels, 16, deepest))

    def programs(self, height: int, width: int, out_channels: int) -> int:
        """Return the programs of one frame."""
        tiles = -(-height // self.TILE_H) * -(-width // self.TILE_W)
        return tiles * -(-out_channels // (self.BLOCK + self.TAIL))


LAUNCH = {"num_warps": 8, "num_stages": 4, "enable_fp_fusion": True}
"""How the convolution is launched."""


def norm_silu(x_THWC: Tensor, gamma_C: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Return silu(x / |x| * gamma), and a second copy of its last `num_kept` frames."""
    out, kept = _norm_silu_shapes(x_THWC, gamma_C, num_kept)
    channels = x_THWC.shape[-1]
    num_rows, kept_rows = x_THWC.numel() // channels, kept.numel() // channels
    block = _power_of_two(channels, 16)
    rows = max(1, _NUMBERS_PER_PROGRAM // block)
    _code().norm_silu[(-(-num_rows // rows),)](
        x_THWC, gamma_C, out, kept, num_rows, num_rows - kept_rows, C=channels, ROWS=rows, BLOCK=block,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out, kept


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    past: Tensor | None,
    beside: Tensor | None,
    num_frames: int,
    num_past: int,
    stride_t: int,
    stride: int,
    pad: int,
    up: bool,
    pieces: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the convolution of `num_past` frames and `num_frames` of x, the last one repeated.

    Without `past` zeros lie in front. `beside` is added. `up` doubles the picture first. Each of the
    `pieces` of the output channels is a frame.
    """
    geometry = (num_frames, num_past, stride_t, stride, up, pieces, dtype)
    out = _conv_shape(x, weight, *geometry)
    frames, height, width, _ = out.shape
    out_channels, channels, *_ = weight.shape
    tile = Tile.of(
        channels, out_channels, large_shared=_shared_bytes(x.device) >= _LARGE_SHARED_BYTES
    )
    _code().convolve[(tile.programs(height, width, out_channels), frames // pieces)](
        x, x if past is None else past, weight, bias, x if beside is None else beside, out,
        x.shape[0], 0 if past is None else -num_past, *x.shape[1:3], height, width,
        0 if beside is None else beside.shape[0],
        NUM_PAST=num_past, STRIDE_T=stride_t, STRIDE=stride, PAD=pad, UP=int(up), PIECES=pieces,
        **constants(weight, tile), **LAUNCH,
    )  # fmt: skip
    return out


def constants(weight_OITKK: Tensor, tile: Tile) -> dict[str, Any]:
    """Return what the kernel is compiled for, of one convolution's weights."""
    out_channels, channels, taps_t, taps, _ = weight_OITKK.shape
    # Numbers of 16 bits are multiplied exactly; float32, which only tests use, is not rounded to tf32.
    precision = "ieee" if weight_OITKK.dtype == torch.float32 else "tf32"
    sizes = {"C": channels, "O": out_channels, "TAPS_T": taps_t, "TAPS": taps}
    return {**sizes, **asdict(tile), "PRECISION": precision}


def _norm_silu_shapes(x: Tensor, _gamma: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(num_kept, *x.shape[1:])


def _conv_shape(
    x: Tensor,
    weight: Tensor,
    num_frames: int,
    num_past: int,
    stride_t: int,
    stride: int,
    up: bool,
    pieces: int,
    dtype: torch.dtype,
) -> Tensor:
    """Memory for the result."""
    _, height, width, _ = x.shape
    num_out = (num_frames + num_past - weight.shape[2]) // stride_t + 1
    size = (height * (1 + up) // stride, width * (1 + up) // stride)
    return x.new_empty(num_out * pieces, *size, weight.shape[0] // pieces, dtype=dtype)


def _fake_conv(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    _, _, _, num_frames, num_past, stride_t, stride, _, up, pieces, dtype = rest
    return _conv_shape(x, weight, num_frames, num_past, stride_t, stride, up, pieces, dtype)


def _power_of_two(number: int, least: int, most: int | None = None) -> int:
    """Return the least power of two that is no smaller, within limits."""
    found = max(least, 1 << (number - 1).bit_length())
    return found if most is None else min(most, found)


def obstacle(device: torch.device) -> str:
    """Return why a GPU cannot launch these kernels; empty where it can."""
    if _shared_bytes(device) >= _LEAST_SHARED_BYTES:
        return ""
    return f"a block has less than {_LEAST_SHARED_BYTES // 1024} KiB of shared memory here"


@cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _LARGE_SHARED_BYTES
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


@cache
def _code() -> Any:
    from lipcast.models.kernels import vae_triton

    return vae_triton


_OPERATORS: dict[str, Operator] = {
    NORM_SILU: (norm_silu, _norm_silu_shapes),
    CONVOLVE: (causal_conv3d, _fake_conv),
}
register_operators(_OPERATORS, _SCHEMAS)
