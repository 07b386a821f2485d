"""The convolution steps that the autoencoder is laid out in, and the kernels that compute them.

A step is one convolution with everything around it: norm and SiLU before, the doubling of the
picture, the residual after. `ConvKernels` computes chains of steps with PyTorch's own operators, in
any dtype on any device; `lipcast.models.kernels.vae.FusedConvKernels` in two Triton kernels.

Layout: activations x_THWC, the channels of a pixel side by side (T frames, H height, W width).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv3d, interpolate, linear, pad, silu


@dataclass(frozen=True)
class ConvStep:
    """One convolution: [norm, SiLU,] [double the picture,] convolve [, add the chain's input]."""

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
    """Whether the picture is doubled first, every pixel four times."""
    doubles_frames: bool = False
    """Whether the halves of the result's channels are two frames, one after the other."""
    residual: bool = False
    """Whether the input of the chain is added to the result."""
    shortcut_OI: Tensor | None = None
    """A 1×1 convolution of what is added."""


class ConvKernels:
    """Computes chains of steps with PyTorch's operators: `pack` once a step, `run` per chunk."""

    any_batch = False
    """Whether a frame gets the same bits in whatever batch of frames it is computed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def pack(self, step: ConvStep) -> ConvStep:
        """Return the step with its weights in the dtype and the layout of these kernels."""

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
        first_THWC, newest = x_THWC, []
        for step, past, count in zip(steps, pasts, num_frames, strict=True):
            x_THWC, kept = self.activate(step, x_THWC, past=past, num_frames=count)
            newest.append(kept)
            x_THWC = self.convolve(
                step,
                x_THWC,
                past=past,
                beside=first_THWC if step.residual else None,
                num_frames=count,
                dtype=torch.float32 if as_float and step is steps[-1] else self._dtype,
            )
        return x_THWC, newest

    def activate(
        self, step: ConvStep, x_THWC: Tensor, *, past: Tensor | None, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Return norm and SiLU of x, and the newest frames of that with the past before it."""
        x_THWC = repeat_last(x_THWC, num_frames)
        if step.gamma_I is not None:
            norm = torch.linalg.vector_norm(x_THWC, dim=-1, keepdim=True).clamp_min_(1e-12)
            x_THWC = silu((x_THWC / norm).mul_(step.gamma_I), inplace=True)
        return x_THWC, newest_frames(x_THWC, past, step.num_past)

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
        """Return the convolution of the past and `num_frames` frames, with `beside` added."""
        if step.num_past:
            x_THWC = torch.cat([_past_or_zeros(x_THWC, past, step.num_past), x_THWC])
        result = _convolve(step, x_THWC)
        if beside is not None:
            result += self.shortcut(step, repeat_last(beside, num_frames))
        if step.doubles_frames:
            result = result.unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        return result.to(dtype)

    def shortcut(self, step: ConvStep, x_THWC: Tensor) -> Tensor:
        """Return what is added to the result of a step for the input of its chain."""
        return x_THWC if step.shortcut_OI is None else linear(x_THWC, step.shortcut_OI)


def newest_frames(x_THWC: Tensor, past: Tensor | None, count: int) -> Tensor:
    """Return a copy of the last `count` frames of the past and x together."""
    missing = count - x_THWC.shape[0]
    if missing <= 0:
        return x_THWC[-missing:].clone()
    return torch.cat([_past_or_zeros(x_THWC, past, count)[-missing:], x_THWC])


def repeat_last(x_THWC: Tensor, count: int) -> Tensor:
    """Return `count` frames, the last one repeated where there are fewer."""
    num_missing = max(0, count - x_THWC.shape[0])
    return torch.cat([x_THWC, x_THWC[-1:].expand(num_missing, -1, -1, -1)])[:count]


def best_kernels() -> ConvKernels:
    """Return the kernels for this CPU: bfloat16 where the processor multiplies it."""
    multiplies_bf16 = "avx512_bf16" in processor_flags()
    return ConvKernels(torch.bfloat16 if multiplies_bf16 else torch.float32)


def processor_flags() -> tuple[str, ...]:
    """Return the instruction sets that Linux reports; empty where it reports none."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        return ()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return tuple(line.split(":", 1)[1].split())
    return ()


def _past_or_zeros(x_THWC: Tensor, past: Tensor | None, count: int) -> Tensor:
    return x_THWC.new_zeros(count, *x_THWC.shape[1:]) if past is None else past


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
