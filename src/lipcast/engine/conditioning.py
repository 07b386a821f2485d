"""Encode a portrait to the latents that condition every block; find the tokens of each character in it.

Input: the fitted portrait as pixels. Output: `ReferenceLatents`: reference, motion and history latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipcast.config.generate_options import ReferenceEncoding
from lipcast.config.geometry import Geometry
from lipcast.config.models import VIDEO_FRAMES_PER_LATENT, DiTConfig
from lipcast.errors import InputError
from lipcast.models.upload import as_video
from lipcast.models.vae import VideoVAE

_GROWTH = 0.1
"""What is added to a character on every side, in longer sides of its box."""
_REFERENCE_FRAMES = 1 + VIDEO_FRAMES_PER_LATENT
"""Frames of a still whose last latent is the reference of a video."""
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
    image_BCHW = as_video(portrait_HWC[None], device)[:, :, 0]
    # The reference is among the first two latents; the others are the motion of a video that begins anew.
    num_frames = config.motion_frames if motion_FHWC is None else _REFERENCE_FRAMES
    with torch.inference_mode():
        still_CFHW = vae.encode_still(image_BCHW, num_frames)[0].float()
    index = 1 if encoding == "video" else 0
    ref_C1HW = still_CFHW[:, index : index + 1]
    if motion_FHWC is not None:
        with torch.inference_mode():
            motion_CFHW = vae.encode(as_video(motion_FHWC, device))[0].float()
        return ReferenceLatents(ref_C1HW, motion_CFHW, history_CFHW=motion_CFHW)
    motion_CFHW = still_CFHW
    if config.motion_encoding == "repeat":
        motion_CFHW = still_CFHW[:, 2:3].expand_as(still_CFHW)
    return ReferenceLatents(ref_C1HW, motion_CFHW, still_CFHW[:, :PRIMING_LATENTS])


def character_tokens(masks_AFHW: Tensor, num_frames: int, size: tuple[int, int]) -> Tensor:
    """Return which tokens the voice of each character moves: 1 where no other character is, [A, F, h, w].

    The arithmetic is the published one: masks are resized (trilinear) to `num_frames` and `size`, grown by a
    tenth, and a voice moves whatever is not somebody else's, the background too. Raises InputError for a
    character that is too small for this size.
    """
    resized = functional.interpolate(
        masks_AFHW.float()[:, None], (num_frames, *size), mode="trilinear"
    )
    inside_AFhw = resized[:, 0] > 0.5
    for index in range(len(inside_AFhw) - 1):  # the later one has what two of them cover
        inside_AFhw[index] &= ~inside_AFhw[index + 1 :].any(dim=0)
    if not inside_AFhw.flatten(1).any(dim=1).all():
        raise InputError(
            "characters: one of the regions is too small for a video of this size; give a larger one, or "
            "raise --size"
        )
    grown_AFhw = torch.stack([torch.stack([_grown(x) for x in frames]) for frames in inside_AFhw])
    count_1Fhw = grown_AFhw.sum(dim=0, keepdim=True)
    return (count_1Fhw - grown_AFhw == 0).float()


def _grown(inside_hw: Tensor) -> Tensor:
    """Return 0 or 1, [h, w]: the character and what lies within a tenth of its longer side."""
    rows, columns = inside_hw.nonzero(as_tuple=True)
    if not len(rows):
        return inside_hw.float()
    box = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    radius = max(1, int(_GROWTH * max(box) + 0.9999))
    return functional.max_pool2d(inside_hw.float()[None], 2 * radius + 1, 1, radius)[0]


def token_mask(masks_AHW: NDArray[np.uint8], geometry: Geometry) -> Tensor:
    """Return `character_tokens` of masks that hold for a whole video, [A, S]."""
    masks_A1HW = torch.tensor(masks_AHW > 0)[:, None]
    return character_tokens(masks_A1HW, 1, (geometry.patch_height, geometry.patch_width))[
        :, 0
    ].flatten(1)
