"""Online decode: clean latents become pixels the moment they are finished.

Input: latents block by block, in order. Output: uint8 frames. State: the decoder's temporal caches,
whose size does not depend on the length of the video.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.engine.conditions import Anchor
from lipcast.models.vae_blocks import DecoderState

_PRIMING_LATENTS = 7
"""Latents of the still portrait that warm the temporal caches; their frames are discarded."""


class StreamingDecoder(Protocol):
    """A VAE, or whatever decodes like one."""

    def new_decoder_state(self) -> DecoderState: ...

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None: ...

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor: ...


class FrameDecoder:
    """One video's decoder."""

    def __init__(self, vae: StreamingDecoder, anchor: Anchor) -> None:
        self._vae = vae
        self.state = vae.new_decoder_state()
        with torch.inference_mode():
            vae.prime(anchor.still_CFHW[None, :, :_PRIMING_LATENTS], self.state)

    @torch.inference_mode()
    def decode(self, latent_CFHW: Tensor) -> NDArray[np.uint8]:
        """Frames uint8 RGB [4 F, height, width, 3]."""
        video_CTHW = self._vae.decode_chunk(latent_CFHW[None], self.state)[0]
        frames_THWC = video_CTHW.permute(1, 2, 3, 0)
        pixels = (frames_THWC.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        result: NDArray[np.uint8] = pixels.cpu().numpy()
        return result
