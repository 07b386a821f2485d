"""Devices by name and by index."""

from __future__ import annotations

import torch


def with_index(device: torch.device) -> torch.device:
    """Return `device` with its index: "cuda" becomes the current GPU, such as "cuda:0".

    Some functions of torch.cuda, `set_per_process_memory_fraction` among them, refuse a device
    without an index.
    """
    if str(device) != "cuda":
        return device
    return torch.device("cuda", torch.cuda.current_device())
