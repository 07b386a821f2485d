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

PRIMING_LATENTS = 7
"""Latents of the still portrait that warm the decoder's caches."""


@dataclass(frozen=True, slots=True)
class ReferenceLatents:
    """ref_C1HW: the reference picture. motion_CFHW: the frames before the first, for the transformer.
    history_CFHW: the same for the decoder, which warm its caches; their frames are discarded."""

    ref_C1HW: Tensor
    motion_CFHW: Tensor
    history_CFHW: Tensor


def encode_reference(
    vae: VideoVAE,
    portrait_HWC: NDArray[np.uint8],
    *,
    config: DiTConfig,
    encoding: ReferenceEncoding,
    device: torch.device,
    motion_FHWC: NDArray[np.uint8] | None = None,
) -> ReferenceLatents:
    """Encode the portrait held still for `config.motion_frames` video frames, or what a video goes on from.

    `motion_FHWC`: the last frames of a clip, as many, in place of the still.

    The encoder is causal: the first latent of that video is the one-frame encode ("image"), the
    second is the second latent of a five-frame still ("video"), so one encode serves all.
    """
    pixels_HWC = torch.tensor(portrait_HWC, device=device)
    image_BCHW = pixels_HWC.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        still_CFHW = vae.encode_still(image_BCHW, config.motion_frames)[0].float()
    index = 1 if encoding == "video" else 0
    ref_C1HW = still_CFHW[:, index : index + 1]
    if motion_FHWC is not None:
        frames_CFHW = torch.tensor(motion_FHWC, device=device).permute(3, 0, 1, 2)
        with torch.inference_mode():
            motion_CFHW = vae.encode(frames_CFHW[None].float() / 127.5 - 1)[0].float()
        return ReferenceLatents(ref_C1HW, motion_CFHW, history_CFHW=motion_CFHW)
    motion_CFHW = still_CFHW
    if config.motion_encoding == "repeat":
        motion_CFHW = still_CFHW[:, 2:3].expand_as(still_CFHW)
    return ReferenceLatents(ref_C1HW, motion_CFHW, still_CFHW[:, :PRIMING_LATENTS])
