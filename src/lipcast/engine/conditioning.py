"""Encode a portrait to the latents that condition every block.

Input: the fitted portrait as pixels. Output: `ReferenceLatents`: reference, motion and history latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.generate_options import ReferenceEncoding
from lipcast.config.models import DiTConfig
from lipcast.models.vae import VideoVAE


@dataclass(frozen=True, slots=True)
class ReferenceLatents:
    """ref_C1HW: the reference picture. motion_CFHW: the frames before the first, for the transformer.
    still_CFHW: the portrait held still, the decoder's history before the first frame."""

    ref_C1HW: Tensor
    motion_CFHW: Tensor
    still_CFHW: Tensor


def encode_reference(
    vae: VideoVAE,
    portrait_HWC: NDArray[np.uint8],
    *,
    config: DiTConfig,
    encoding: ReferenceEncoding,
    device: torch.device,
) -> ReferenceLatents:
    """Encode the portrait held still for `config.motion_frames` video frames.

    The encoder is causal: the first latent of that video is the one-frame encode ("image"), the
    second is the second latent of a five-frame still ("video"), so one encode serves all.
    """
    pixels_HWC = torch.tensor(portrait_HWC, device=device)
    image_BCHW = pixels_HWC.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        still_CFHW = vae.encode_still(image_BCHW, config.motion_frames)[0].float()
    index = 1 if encoding == "video" else 0
    motion_CFHW = still_CFHW
    if config.motion_encoding == "repeat":
        motion_CFHW = still_CFHW[:, 2:3].expand_as(still_CFHW)
    return ReferenceLatents(still_CFHW[:, index : index + 1], motion_CFHW, still_CFHW)
