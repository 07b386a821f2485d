"""The parts that a network of the autoencoder is cut into for `ConvKernels`, each a stream.

`stream(x_THWC, state, num_units)` gives the next x_THWC, through the first units of the part;
`num_convs` says how many convolutions in time each unit has. `encode_static(x_THWC, length)` is for a
video of `length` frames whose last given frame stands still, and gives the same of the result.
Between two parts lies a point where whole frames are needed: an attention, a change of the frame
rate. Inside a part, the convolution steps of one residual block form a chain.
Invariant: what is remembered is in the state under the convolution's official name, in the
model's layout, so that a state can go on with another execution.

Shape suffixes: T frames, H height, W width, C channels, N = H·W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from lipcast.models.vae_blocks import FrameAttention, StreamState
from lipcast.models.vae_kernels import ConvKernels, ConvStep
from lipcast.models.vae_receptive import settled_by_conv, settled_by_halving


class ConvRun:
    """Blocks of steps (the convolutions of one residual block, or one alone), in series."""

    def __init__(
        self, blocks: Sequence[Sequence[ConvStep]], kernels: ConvKernels, *, as_float: bool
    ) -> None:
        self._kernels = kernels
        self._blocks = [[kernels.pack(step) for step in block] for block in blocks]
        self._as_float = as_float

    @property
    def steps(self) -> list[ConvStep]:
        """Every convolution, in order."""
        return [step for block in self._blocks for step in block]

    @property
    def doubles(self) -> bool:
        """Whether the picture gets twice as high and wide."""
        return self._blocks[0][0].up

    @property
    def num_convs(self) -> Sequence[int]:
        return [sum(step.num_past > 0 for step in block) for block in self._blocks]

    def stream(self, x_THWC: Tensor, state: StreamState, num_units: int) -> Tensor:
        for index, steps in enumerate(self._blocks[:num_units]):
            pasts = [recall(state, step.name, x_THWC.dtype) for step in steps]
            num_frames = [x_THWC.shape[0]] * len(steps)
            x_THWC, newest = self._run(index, x_THWC, pasts, num_frames)
            for step, frames in zip(steps, newest, strict=True):
                if step.num_past:
                    remember(state, step.name, frames)
        return x_THWC

    def encode_static(self, x_THWC: Tensor, length: int) -> tuple[Tensor, int]:
        for index, steps in enumerate(self._blocks):
            head, num_frames = x_THWC.shape[0], []
            for step in steps:
                head = settled_by_conv(head, length, step.num_past)
                num_frames.append(head)
            x_THWC, _ = self._run(index, x_THWC, [None] * len(steps), num_frames)
        return x_THWC, length

    def _run(
        self,
        index: int,
        x_THWC: Tensor,
        pasts: Sequence[Tensor | None],
        num_frames: Sequence[int],
    ) -> tuple[Tensor, list[Tensor]]:
        return self._kernels.run(
            self._blocks[index],
            x_THWC,
            pasts=pasts,
            num_frames=num_frames,
            as_float=self._as_float and index + 1 == len(self._blocks),
        )


class DoubleFrames:
    """Two frames for one, except for the first latent frame of a video."""

    num_convs = (1,)

    def __init__(self, step: ConvStep, kernels: ConvKernels) -> None:
        self._step, self._kernels = kernels.pack(step), kernels
        self.steps = [self._step]

    def stream(self, x_THWC: Tensor, state: StreamState, _num_units: int) -> Tensor:
        past = recall(state, self._step.name, x_THWC.dtype)
        if past is None:
            zeros = x_THWC.new_zeros(self._step.num_past, *x_THWC.shape[1:])
            remember(state, self._step.name, zeros)
            return x_THWC
        x_THWC, newest = run_one(self._kernels, self._step, x_THWC, past, x_THWC.shape[0])
        remember(state, self._step.name, newest)
        return x_THWC


class HalveFrames:
    """One frame for two, except for the first frame of a video."""

    num_convs = (1,)

    def __init__(self, step: ConvStep, kernels: ConvKernels) -> None:
        self._step, self._kernels = kernels.pack(step), kernels
        self.steps = [self._step]

    def stream(self, x_THWC: Tensor, state: StreamState, _num_units: int) -> Tensor:
        past = recall(state, self._step.name, x_THWC.dtype)
        remember(state, self._step.name, x_THWC[-1:].clone())
        if past is None:
            return x_THWC
        return run_one(self._kernels, self._step, x_THWC, past, x_THWC.shape[0])[0]

    def encode_static(self, x_THWC: Tensor, length: int) -> tuple[Tensor, int]:
        count, halved = settled_by_halving(x_THWC.shape[0], length)
        if count == 1:
            return x_THWC[:1], halved
        first, rest = x_THWC[:1], x_THWC[1:] if x_THWC.shape[0] > 1 else x_THWC
        num_frames = 2 * (count - 1)
        out, _ = run_one(self._kernels, self._step, rest[:num_frames], first, num_frames)
        return torch.cat([first, out]), halved


class Attention:
    """Single-head self-attention between the pixels of one frame."""

    num_convs = (0,)
    steps: Sequence[ConvStep] = ()

    def __init__(self, layer: FrameAttention, kernels: ConvKernels) -> None:
        self._one_by_one, dtype = kernels.any_batch, kernels.dtype
        self._gamma = (layer.norm.gamma.detach().flatten() * layer.norm.scale).float()
        self._to_qkv, self._proj = (
            (conv.weight.detach().flatten(1).to(dtype), bias_of(conv).to(dtype))
            for conv in (layer.to_qkv, layer.proj)
        )

    def stream(self, x_THWC: Tensor, _state: StreamState, _num_units: int) -> Tensor:
        if not self._one_by_one:
            return self._mix(x_THWC)
        # The libraries choose their kernels by the number of frames, and kernels round differently.
        return torch.cat([self._mix(frame) for frame in x_THWC.split(1)])

    def encode_static(self, x_THWC: Tensor, length: int) -> tuple[Tensor, int]:
        return self._mix(x_THWC), length

    def _mix(self, x_THWC: Tensor) -> Tensor:
        x_TNC = x_THWC.flatten(1, 2)
        normed = (normalize(x_TNC.float(), dim=-1) * self._gamma).to(x_TNC.dtype)
        qkv = linear(normed, *self._to_qkv).unsqueeze(1)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = scaled_dot_product_attention(q, k, v).squeeze(1)
        return (x_TNC + linear(mixed, *self._proj)).view_as(x_THWC)


def run_one(
    kernels: ConvKernels, packed: ConvStep, x_THWC: Tensor, past: Tensor, num_frames: int
) -> tuple[Tensor, Tensor]:
    """Run one step alone; returns its result and the newest frames of its input."""
    out, newest = kernels.run(
        [packed], x_THWC, pasts=[past], num_frames=[num_frames], as_float=False
    )
    return out, newest[0]


def bias_of(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def recall(state: StreamState, name: str, dtype: torch.dtype) -> Tensor | None:
    """Return what the layer remembers, [T, H, W, C]; None at the beginning of a video."""
    cache_BCTHW = state.caches.get(name)
    if cache_BCTHW is None:
        return None
    return cache_BCTHW[0].permute(1, 2, 3, 0).to(dtype).contiguous()


def remember(state: StreamState, name: str, frames_THWC: Tensor) -> None:
    state.caches[name] = frames_THWC.permute(3, 0, 1, 2).unsqueeze(0)


Part = ConvRun | DoubleFrames | HalveFrames | Attention
