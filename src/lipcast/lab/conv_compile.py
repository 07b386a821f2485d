"""Compile the autoencoder's fused convolutions for GPUs that are not here.

Input: the published model's shapes, without memory for weights. Output: registers, spilled bytes and
shared memory of every form of the kernel, by compute capability (`lipcast.lab.kernel_compile`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lipcast.config.models import VAEConfig
from lipcast.lab.kernel_compile import CompiledKernel, KernelCase, compiled
from lipcast.models.kernels.vae import LAUNCH, FusedConvKernels, Tile, constants
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_channels_last import ChannelsLastNetwork, to_channels_last
from lipcast.models.vae_kernels import ConvStep
from lipcast.weights.load import without_memory

_LARGE_SHARED = (80, 90, 100)
"""Compute capabilities with the shared memory of a data centre's GPU."""
_POINTERS = ("X", "PAST", "WEIGHT", "BIAS", "BESIDE", "OUT")


def compile_convolutions(config: VAEConfig, capability: int) -> Iterator[CompiledKernel]:
    """Compile each convolution of decoder and encoder once. Raises whatever the compiler raises."""
    cases = [_case(step, capability in _LARGE_SHARED) for step in _steps(config)]
    for case in {case.label: case for case in cases}.values():
        yield compiled(case, capability)


def _steps(config: VAEConfig) -> Iterator[ConvStep]:
    with without_memory():
        vae = to_channels_last(VideoVAE(config), FusedConvKernels(torch.bfloat16))
    for network in (vae.decoder, vae.encoder):
        assert isinstance(network, ChannelsLastNetwork)
        for part in network.parts:
            yield from part.steps


def _case(step: ConvStep, large_shared: bool) -> KernelCase:
    out_channels, channels, taps_t, taps, _ = step.weight_OITKK.shape
    tile = Tile.of(channels, out_channels, large_shared=large_shared)
    form = {
        "NUM_PAST": step.num_past, "STRIDE_T": step.stride_t, "STRIDE": step.stride, "PAD": step.pad,
        "UP": int(step.up), "PIECES": 1 + step.doubles_frames,
    }  # fmt: skip
    words = [f"{channels} to {out_channels} channels", f"{taps_t}x{taps}x{taps}"]
    words += ["doubled"] * step.up + ["halved"] * (step.stride * step.stride_t > 1)
    return KernelCase(
        ", ".join(["convolution", *words]),
        "convolve",
        {**constants(step.weight_OITKK, tile), **form},
        dict.fromkeys(_POINTERS, "*bf16"),
        LAUNCH,
        module="vae_triton",
    )
