"""Copies to a device that nothing waits for: tensors, and frames as a video tensor."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Return x on `device`.

    A plain copy to a GPU makes the host wait for everything that the GPU was given before. From locked memory
    it takes its place among that work, and PyTorch keeps the memory until it is done.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def as_video(frames_FHWC: NDArray[Any], device: torch.device) -> Tensor:
    """Return frames of 0 to 255 as video_BCFHW in -1..1 on `device`, B = 1."""
    pixels_FHWC = upload(torch.tensor(frames_FHWC), device)
    return pixels_FHWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
