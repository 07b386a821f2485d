"""Encode the pictures of a pose, block by block.

Input: pictures at 25 a second, from the first frame of the video on and without end. Output: latents
[C, F, H, W] of one block after the other. As published: every clip (a window of latent frames) is encoded for
itself, with its first picture once more in front, whose latent is dropped. State: the encoder's caches of the
current clip, of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.models import VIDEO_FRAMES_PER_LATENT
from lipcast.config.video_spec import VideoSpec
from lipcast.models.upload import as_video
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import EncoderState


class PosePictures(Protocol):
    """Pictures that a video follows."""

    def frames(self, first: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the pictures [height, width, 3] of the video's frames, from frame `first` on, without end."""


class PoseEncoder:
    """The pose latents of one video, in order; another order costs a clip of work."""

    def __init__(
        self, vae: VideoVAE, pictures: PosePictures, spec: VideoSpec, *, device: torch.device
    ) -> None:
        self._vae, self._pictures, self._geometry = vae, pictures, spec.geometry
        self._device = device
        self._frames: Iterator[NDArray[np.uint8]] = iter(())
        self._state = EncoderState()
        self._next_latent = -1

    @torch.inference_mode()
    def latents(self, block: int) -> Tensor:
        """Return the latents of a block. A call that fails may be repeated."""
        count = self._geometry.latents_per_block
        if self._next_latent != block * count:
            self._seek(block * count)
        try:
            return torch.cat([self._encode_next() for _ in range(count)], dim=1)
        except BaseException:
            self._next_latent = -1
            raise

    def _seek(self, latent: int) -> None:
        """Go to a latent frame: its clip is encoded from the beginning."""
        clip = first_of_clip(latent, self._geometry.window)
        geometry = self._geometry
        first = clip * VIDEO_FRAMES_PER_LATENT
        self._frames = self._pictures.frames(first, geometry.height, geometry.width)
        self._next_latent = clip
        while self._next_latent < latent:
            self._encode_next()

    def _encode_next(self) -> Tensor:
        pictures_FHWC = np.stack(list(islice(self._frames, VIDEO_FRAMES_PER_LATENT)))
        video_BCFHW = as_video(pictures_FHWC, self._device)
        if self._next_latent % self._geometry.window == 0:
            self._state = EncoderState()
            self._vae.encode_chunk(video_BCFHW[:, :, :1], self._state)
        latent_CFHW = self._vae.encode_chunk(video_BCFHW, self._state)[0].float()
        self._next_latent += 1
        return latent_CFHW


def first_of_clip(latent: int, window: int) -> int:
    """Return the first latent frame of the clip that one lies in."""
    return latent // window * window
