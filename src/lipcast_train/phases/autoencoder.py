"""Phases 2 and 3: the streaming autoencoder, and the fast decoder of its latents.

Losses of the autoencoder: L1, squares, spatial gradients, differences in time, Kullback-Leibler; mouth and
eyes count more. Videos have 17 to 49 frames, and half of them begin with the portrait at rest: a network that
reaches far in time learns nothing from shorter ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lipcast.models.upload import as_video
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_tiny import TinyDecoder
from lipcast_train.data.pool import ClipPool, dice, noise_like, pixel_weights
from lipcast_train.networks.autoencoder import (
    decode_fast,
    decode_raw,
    encode_moments,
    encode_normalised,
)
from lipcast_train.training.devices import Share
from lipcast_train.training.loop import Phase, Recipe
from lipcast_train.training.pictures import write_strip

_SQUARES, _GRADIENT, _TEMPORAL, _KL = 2.0, 0.35, 0.2, 3e-5
STILL_FRAMES = 5
"""Frames of the portrait at rest in front of half of the videos."""


@dataclass(frozen=True, slots=True)
class Footage:
    """One video and the weights of its pixels."""

    video_BCTHW: Tensor
    weights_HW: Tensor
    seed: int


def picture_loss(made: Tensor, wanted: Tensor, weights_HW: Tensor) -> Tensor:
    """Return the loss of pictures, without that of the latents."""
    error = made - wanted
    pixels = ((error.abs() + _SQUARES * error.square()) * weights_HW).mean()
    edges = (error.diff(dim=3).abs() * weights_HW[1:]).mean()
    edges = edges + (error.diff(dim=4).abs() * weights_HW[:, 1:]).mean()
    changes = (error.diff(dim=2).abs() * weights_HW).mean() if error.shape[2] > 1 else 0.0
    return pixels + _GRADIENT * edges + _TEMPORAL * changes


class AutoencoderObjective(nn.Module):
    """Encode, draw a latent, decode."""

    def __init__(self, vae: VideoVAE) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True)

    def forward(self, batch: list[Footage]) -> Tensor:
        """Return the loss of a batch."""
        return torch.stack([self._loss(footage) for footage in batch]).mean()

    def _loss(self, footage: Footage) -> Tensor:
        mean, log_variance = encode_moments(self.vae, footage.video_BCTHW)
        latent = mean + (0.5 * log_variance).exp() * noise_like(mean, footage.seed)
        made = decode_raw(self.vae, latent)
        picture = picture_loss(made, footage.video_BCTHW, footage.weights_HW)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return picture + _KL * kl


class DecoderObjective(nn.Module):
    """The fast decoder gives the pictures of latents of the finished autoencoder."""

    def __init__(self, decoder: TinyDecoder, vae: VideoVAE) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(True)
        self._vae = [vae]  # in a list: what is finished is no part of what is trained

    def forward(self, batch: list[Footage]) -> Tensor:
        """Return the loss of a batch."""
        return torch.stack([self._loss(footage) for footage in batch]).mean()

    def _loss(self, footage: Footage) -> Tensor:
        with torch.no_grad():
            latent = encode_normalised(self._vae[0], footage.video_BCTHW)
        made = decode_fast(self.decoder, latent)
        return picture_loss(made, footage.video_BCTHW, footage.weights_HW)


class FootageBatches:
    """Draws videos of random clips, lengths and beginnings."""

    def __init__(
        self, pool: ClipPool, lengths: Sequence[int], *, size: int, seed: int, device: torch.device
    ) -> None:
        """`lengths` are numbers of frames, 4 n + 1; `size` videos are a batch."""
        self._pool, self._lengths, self._size = pool, lengths, size
        self._seed, self._device = seed, device

    def __call__(self, step: int, share: Share) -> list[Footage]:
        """Return the videos of one process for one step; all are equally long."""
        random = dice(self._seed, "footage", step)
        length = random.choice(self._lengths)
        places = [(random.randrange(len(self._pool)), random.random()) for _ in range(self._size)]
        numbered = share.of(list(enumerate(places)))
        return [self._cut(clip, at, length, step * self._size + n) for n, (clip, at) in numbered]

    def _cut(self, index: int, at: float, length: int, seed: int) -> Footage:
        clip = self._pool.clip(index)
        frames = clip.frames_THWC
        if at < 0.5:
            frames = np.concatenate([np.repeat(clip.portrait_HWC[None], STILL_FRAMES, 0), frames])
            at = 0.0
        first = int(at * max(0, len(frames) - length))
        video = as_video(frames[first : first + length], self._device)
        return Footage(video, pixel_weights(clip).to(self._device), seed)


def autoencoder_phase(vae: VideoVAE, recipe: Recipe, batches: FootageBatches) -> Phase:
    """Return the phase of the autoencoder."""

    def sample(path: Path) -> None:
        video = batches(0, Share())[0].video_BCTHW
        made = decode_raw(vae, encode_moments(vae, video)[0])
        write_strip(path, [video, made])

    return Phase("autoencoder", recipe, AutoencoderObjective(vae), batches, sample=sample)


def decoder_phase(
    decoder: TinyDecoder, vae: VideoVAE, recipe: Recipe, batches: FootageBatches
) -> Phase:
    """Return the phase of the fast decoder."""

    def sample(path: Path) -> None:
        video = batches(0, Share())[0].video_BCTHW
        write_strip(path, [video, decode_fast(decoder, encode_normalised(vae, video))])

    return Phase("decoder", recipe, DecoderObjective(decoder, vae), batches, sample=sample)


@torch.no_grad()
def latent_statistics_of(
    vae: VideoVAE, batches: FootageBatches, *, num_batches: int
) -> tuple[Tensor, Tensor]:
    """Return mean_C and std_C of the latents before normalisation."""
    footage = [one for step in range(num_batches) for one in batches(step, Share())]
    latents = [encode_moments(vae, one.video_BCTHW)[0][0].flatten(1) for one in footage]
    all_CX = torch.cat(latents, dim=1).double()
    return all_CX.mean(1), all_CX.std(1).clamp(min=1e-3)
