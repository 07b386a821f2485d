"""What the autoencoder's CPU execution is made of: convolution steps, and who computes them.

A step is one convolution with everything around it: norm and SiLU before, the doubling of the
picture, the residual after. `TorchKernels` computes a chain of steps in any type, on any machine.

Layout: activations x_THWC, the channels of a pixel side by side (T frames, H height, W width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv3d, interpolate, linear, pad, silu


@dataclass(frozen=True)
class ConvStep:
    """One convolution: [norm, SiLU,] [double the picture,] convolve [, add an earlier level]."""

    name: str
    """The key of its memory in a state."""
    weight_OITKK: Tensor
    bias_O: Tensor
    gamma_I: Tensor | None = None
    """Norm weight times sqrt(channels); None: the input is used as it is."""
    num_past: int = 0
    """Frames in front of the chunk that it looks back to."""
    stride: int = 1
    stride_t: int = 1
    pad: int = 0
    up: bool = False
    residual: int = 0
    """How many steps back the level lies that is added (1: the step's own input); 0: none."""
    shortcut_OI: Tensor | None = None
    """A 1×1 convolution of the added level."""

    @property
    def out_channels(self) -> int:
        return self.weight_OITKK.shape[0]

    def out_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, height and width of the result, `num_frames` without the past ones."""
        kernel_t, scale = self.weight_OITKK.shape[2], 1 + self.up
        num_out = (num_frames + self.num_past - kernel_t) // self.stride_t + 1
        return num_out, height * scale // self.stride, width * scale // self.stride


class TorchKernels:
    """Computes chains of steps with torch's own operators: `pack` once a step, `run` per chunk."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def pack(self, step: ConvStep) -> ConvStep:
        """Return the step with its weights in the type and the layout of these kernels."""

        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self._dtype)

        weight = step.weight_OITKK.to(self._dtype, memory_format=torch.channels_last_3d)
        fields = {**vars(step), "weight_OITKK": weight}
        fields |= {n: cast(fields[n]) for n in ("bias_O", "gamma_I", "shortcut_OI")}
        return ConvStep(**fields)

    def run(
        self,
        steps: Sequence[ConvStep],
        x_THWC: Tensor,
        *,
        pasts: Sequence[Tensor | None],
        num_frames: Sequence[int],
        as_float: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the result of the last step, and of each step the newest frames of its input.

        `pasts`: for each step the frames in front of the chunk, [num_past, H, W, C]; None: zeros.
        `num_frames`: what each step consumes; where its input has fewer, the last one repeats.
        `as_float`: the result in float32, whatever the steps compute in.
        """
        levels, newest = [x_THWC], []
        for step, past, count in zip(steps, pasts, num_frames, strict=True):
            frames = _with_past(step, _repeat_last(levels[-1], count), past)
            newest.append(frames[frames.shape[0] - step.num_past :].clone())
            result = _convolve(step, frames)
            if step.residual:
                result += _beside(step, _repeat_last(levels[-step.residual], count))
            levels.append(result)
        return levels[-1].float() if as_float else levels[-1], newest


def _repeat_last(x_THWC: Tensor, count: int) -> Tensor:
    num_missing = max(0, count - x_THWC.shape[0])
    return torch.cat([x_THWC, x_THWC[-1:].expand(num_missing, -1, -1, -1)])[:count]


def _with_past(step: ConvStep, x_THWC: Tensor, past: Tensor | None) -> Tensor:
    """Norm and SiLU, the remembered frames in front."""
    if step.gamma_I is not None:
        norm = torch.linalg.vector_norm(x_THWC, dim=-1, keepdim=True).clamp_min_(1e-12)
        x_THWC = silu((x_THWC / norm).mul_(step.gamma_I), inplace=True)
    if step.num_past == 0:
        return x_THWC
    if past is None:
        past = x_THWC.new_zeros(step.num_past, *x_THWC.shape[1:])
    return torch.cat([past, x_THWC])


def _convolve(step: ConvStep, x_THWC: Tensor) -> Tensor:
    x_CTHW = x_THWC.permute(3, 0, 1, 2)
    if step.up:
        x_TCHW = interpolate(x_CTHW.transpose(0, 1), scale_factor=2, mode="nearest-exact")
        x_CTHW = x_TCHW.transpose(0, 1)
    if step.stride > 1:
        x_CTHW = pad(x_CTHW, (0, 1, 0, 1))
    out_CTHW = conv3d(
        x_CTHW.unsqueeze(0),
        step.weight_OITKK,
        step.bias_O,
        stride=(step.stride_t, step.stride, step.stride),
        padding=(0, step.pad, step.pad),
    )[0]
    return out_CTHW.permute(1, 2, 3, 0)


def _beside(step: ConvStep, level_THWC: Tensor) -> Tensor:
    return level_THWC if step.shortcut_OI is None else linear(level_THWC, step.shortcut_OI)
