"""The autoencoder and the fast decoder with gradients, in two chunks a video: the first frame, and the rest.

A stream may be cut anywhere, so these are the numbers of `VideoVAE.encode` and `decode` before clamping.

Shapes: B batch (1), C channels, T frames, H height, W width; latents have F frames.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lipcast.models.vae import VideoVAE, latent_statistics
from lipcast.models.vae_blocks import CausalConv3d, DecoderState, EncoderState
from lipcast.models.vae_tiny import TinyDecoder


def convolve_in_planes(vae: VideoVAE) -> None:
    """Compute convolutions over time and space as 2-D ones over stacked frames, with the same weights.

    Within rounding the numbers are the same. On a CPU the gradients of narrow 3-D convolutions take several
    times as long.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.kernel_size[1:] == (3, 3):
            module.__dict__["convolve"] = partial(_planes, module)


def _planes(conv: CausalConv3d, x_BCTHW: Tensor) -> Tensor:
    """Return the convolution of one video, whose past is in front already."""
    reach = conv.kernel_size[0]
    frames_TCHW = x_BCTHW[0].transpose(0, 1)
    count = len(frames_TCHW) - reach + 1
    stacked = torch.cat([frames_TCHW[i : i + count] for i in range(reach)], dim=1)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)
    made = functional.conv2d(stacked, weight, conv.bias, padding=1)
    return made.transpose(0, 1)[None]


def encode_moments(vae: VideoVAE, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and logarithm of the variance of the latents, before normalisation."""
    state = EncoderState()
    chunks = (video_BCTHW[:, :, :1], video_BCTHW[:, :, 1:])
    moments = [vae.encoder(chunk, state) for chunk in chunks if chunk.shape[2]]
    mean, log_variance = vae.conv1(torch.cat(moments, dim=2)).chunk(2, dim=1)
    return mean, log_variance.clamp(-20.0, 10.0)


def decode_raw(vae: VideoVAE, latent_BCFHW: Tensor) -> Tensor:
    """Return the video of latents before normalisation, not clamped."""
    entered = vae.conv2(latent_BCFHW)
    chunks = [chunk for chunk in (entered[:, :, :1], entered[:, :, 1:]) if chunk.shape[2]]
    return torch.cat(vae.decoder.decode(chunks, DecoderState()), dim=2)


def encode_normalised(vae: VideoVAE, video_BCTHW: Tensor) -> Tensor:
    """Return what `VideoVAE.encode` returns, within rounding."""
    mean, std = latent_statistics(vae.config, video_BCTHW.device)
    return (encode_moments(vae, video_BCTHW)[0] - mean) / std


def decode_fast(decoder: TinyDecoder, latent_BCFHW: Tensor) -> Tensor:
    """Return the video of normalised latents in [-1, 1], not clamped."""
    state = decoder.new_decoder_state()
    pictures = [decoder.raw_pictures(z, state) for z in latent_BCFHW.split(1, dim=2)]
    return torch.cat(pictures, dim=2) * 2 - 1
