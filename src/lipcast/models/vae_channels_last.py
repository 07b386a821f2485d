"""The video autoencoder with channels last: the same functions, from the same weights.

`to_channels_last(vae, kernels)` reads a `VideoVAE` and returns one whose encoder and decoder run
as chains of convolution steps: on a CPU, and in fused kernels on a GPU. States go from one to the
other and back. Off switch: use the model itself; `ConvKernels(torch.float32)` gives its numbers to
rounding. A video decoded in chunks has the same bits as decoded at once: with PyTorch's operators
because one latent is decoded at a time, with fused kernels because no frame depends on its batch.

Shape suffixes: B batch (1), C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from lipcast.models.vae import Decoder, Encoder, VideoVAE
from lipcast.models.vae_blocks import (
    CausalConv3d,
    Downsample,
    FrameAttention,
    ResidualBlock,
    RMSNorm,
    StreamState,
    Upsample,
)
from lipcast.models.vae_kernels import ConvKernels, ConvStep
from lipcast.models.vae_parts import (
    Attention,
    ConvRun,
    DoubleFrames,
    HalveFrames,
    Part,
    bias_of,
)
from lipcast.models.vae_receptive import Unit, latents_to_run, units_to_run

Block = list[ConvStep]
"""The convolutions of one residual block, or one alone."""


class ChannelsLastVAE(VideoVAE):
    """A VideoVAE whose two networks run on `ConvKernels`."""

    def __init__(self, vae: VideoVAE, kernels: ConvKernels) -> None:
        nn.Module.__init__(self)
        assert isinstance(vae.encoder, Encoder) and isinstance(vae.decoder, Decoder)
        self.config = vae.config
        self.encoder = ChannelsLastEncoder(vae.encoder.layers, kernels)
        self.decoder = ChannelsLastDecoder(vae.decoder.layers, kernels)
        self.conv1 = vae.conv1
        self.conv2 = vae.conv2


def to_channels_last(vae: VideoVAE, kernels: ConvKernels) -> ChannelsLastVAE:
    """Return the same autoencoder on `kernels`; the weights are copied into their layout, once."""
    return ChannelsLastVAE(vae, kernels)


class ChannelsLastNetwork(nn.Module):
    """Parts in series, x_BCTHW in and out (float32 out)."""

    def __init__(self, layers: Sequence[nn.Module], kernels: ConvKernels) -> None:
        super().__init__()
        self.dtype = kernels.dtype
        self.parts = list(make_parts(layers, kernels))
        self.num_units = sum(len(part.num_convs) for part in self.parts)

    def forward(self, x_BCTHW: Tensor, state: StreamState) -> Tensor:
        return self.run_units(x_BCTHW, state, self.num_units)

    def run_units(self, x_BCTHW: Tensor, state: StreamState, num_units: int) -> Tensor:
        """Run the first `num_units` units of the network."""
        return leave(run_parts(self.parts, self.enter(x_BCTHW), state, num_units))

    def enter(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW[0].permute(1, 2, 3, 0).to(self.dtype).contiguous()


class ChannelsLastEncoder(ChannelsLastNetwork):
    """Stands in for `Encoder`."""

    def encode_static(self, image_BCHW: Tensor, num_frames: int) -> Tensor:
        x_THWC, length = self.enter(image_BCHW.unsqueeze(2)), num_frames
        for part in self.parts:
            assert not isinstance(part, DoubleFrames)
            x_THWC, length = part.encode_static(x_THWC, length)
        num_missing = length - x_THWC.shape[0]
        return leave(torch.cat([x_THWC, x_THWC[-1:].expand(num_missing, -1, -1, -1)]))


class ChannelsLastDecoder(ChannelsLastNetwork):
    """Stands in for `Decoder`."""

    def __init__(self, layers: Sequence[nn.Module], kernels: ConvKernels) -> None:
        super().__init__(layers, kernels)
        self.any_batch = kernels.any_batch
        self.num_small = num_small_parts(self.parts)
        units, rate = [], 1
        for part in self.parts:
            units += [Unit(rate, count) for count in part.num_convs]
            rate *= 2 if isinstance(part, DoubleFrames) else 1
        self.latents_to_run = latents_to_run(units)

    def decode(self, latents: Sequence[Tensor], state: StreamState) -> list[Tensor]:
        if not self.any_batch:
            return [self(z, state) for z in latents]
        # The first latent of a video gives fewer frames than those that follow.
        num_alone = 0 if state.caches else 1
        batches = [z for z in (latents[:num_alone], latents[num_alone:]) if z]
        return [frames for batch in batches for frames in self._decode_batch(batch, state)]

    def _decode_batch(self, latents: Sequence[Tensor], state: StreamState) -> list[Tensor]:
        """Decode latents of as many frames each: together while the picture is small."""
        small, large = self.parts[: self.num_small], self.parts[self.num_small :]
        x_THWC = run_parts(small, self.enter(torch.cat(list(latents), dim=2)), state)
        each = x_THWC.split(x_THWC.shape[0] // len(latents))
        return [leave(run_parts(large, frames, state)) for frames in each]

    def advance(self, z_BCTHW: Tensor, state: StreamState) -> None:
        latents = z_BCTHW.split(1, dim=2)
        for index, z in enumerate(latents):
            self.run_units(z, state, units_to_run(self.latents_to_run, index, len(latents)))


def run_parts(
    parts: Sequence[Part], x_THWC: Tensor, state: StreamState, num_units: int | None = None
) -> Tensor:
    """Run parts in series, through their first `num_units` units only where that is given."""
    for part in parts:
        count = len(part.num_convs) if num_units is None else min(num_units, len(part.num_convs))
        if count <= 0:
            break
        x_THWC = part.stream(x_THWC, state, count)
        num_units = None if num_units is None else num_units - count
    return x_THWC


def num_small_parts(parts: Sequence[Part]) -> int:
    """Return how many parts see pictures of at most a quarter of the full height and width."""
    doublings = [i for i, part in enumerate(parts) if isinstance(part, ConvRun) and part.doubles]
    return doublings[-2] if len(doublings) > 1 else 0


def leave(x_THWC: Tensor) -> Tensor:
    return x_THWC.permute(3, 0, 1, 2).unsqueeze(0)


def make_parts(layers: Sequence[nn.Module], kernels: ConvKernels) -> Iterator[Part]:
    """Cut a network into parts: runs of convolutions, and what lies between them."""
    run: list[Block] = []
    *body, norm, _, head = layers
    assert isinstance(norm, RMSNorm) and isinstance(head, CausalConv3d)
    for item in chain.from_iterable(_items(layer, kernels) for layer in body):
        if run and (not isinstance(item, list) or changes_size(item[0])):
            yield ConvRun(run, kernels, as_float=False)
            run = []
        if isinstance(item, list):
            run.append(item)
        else:
            yield item
    yield ConvRun([*run, [conv_step(head, norm)]], kernels, as_float=True)


def _items(layer: nn.Module, kernels: ConvKernels) -> Iterator[Block | Part]:
    if isinstance(layer, CausalConv3d):
        yield [conv_step(layer, None)]
    elif isinstance(layer, ResidualBlock):
        yield residual_steps(layer)
    elif isinstance(layer, FrameAttention):
        yield Attention(layer, kernels)
    elif isinstance(layer, Downsample):
        yield [plane_step(layer, up=False)]
        if layer.temporal:
            yield HalveFrames(conv_step(layer.time_conv, None), kernels)
    else:
        assert isinstance(layer, Upsample)
        if layer.temporal:
            yield DoubleFrames(
                replace(conv_step(layer.time_conv, None), doubles_frames=True), kernels
            )
        yield [plane_step(layer, up=True)]


def changes_size(step: ConvStep) -> bool:
    """Return whether the step sees a picture of another size; it can only begin a chain."""
    return step.up or step.stride > 1


def conv_step(conv: CausalConv3d, norm: RMSNorm | None, *, residual: bool = False) -> ConvStep:
    halves = conv.stride[0] > 1
    return ConvStep(
        conv.name,
        conv.weight.detach(),
        bias_of(conv),
        gamma_I=None if norm is None else (norm.gamma.detach().flatten() * norm.scale),
        num_past=1 if halves else conv.num_past,
        stride_t=conv.stride[0],
        pad=int(conv.padding[1]),
        residual=residual,
    )


def residual_steps(block: ResidualBlock) -> Block:
    first_norm, _, first, second_norm, _, _, second = block.residual
    assert isinstance(first_norm, RMSNorm) and isinstance(second_norm, RMSNorm)
    assert isinstance(first, CausalConv3d) and isinstance(second, CausalConv3d)
    steps = [conv_step(first, first_norm), conv_step(second, second_norm, residual=True)]
    if isinstance(block.shortcut, nn.Conv3d):
        steps[1] = replace(
            steps[1],
            bias_O=steps[1].bias_O + bias_of(block.shortcut),
            shortcut_OI=block.shortcut.weight.detach().flatten(1),
        )
    return steps


def plane_step(layer: Downsample | Upsample, *, up: bool) -> ConvStep:
    """Return a convolution of single frames; halving, it is padded on the right and below only."""
    conv = layer.resample[1]
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().unsqueeze(2)
    stride, padding = conv.stride[0], int(conv.padding[0])
    return ConvStep("", weight, bias_of(conv), stride=stride, pad=padding, up=up)
