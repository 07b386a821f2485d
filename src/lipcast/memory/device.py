"""Devices, and what torch makes for them."""

from __future__ import annotations

import platform

import torch

from lipcast.env import allocator_is_configured, logger

_log = logger("memory.device")


def decode_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of a GPU for decoders.

    It has high priority: frames leave first, and the transformer fills what the decoder leaves idle.
    """
    return torch.cuda.Stream(device, priority=-1)


def with_index(device: torch.device) -> torch.device:
    """Return `device` with its index: "cuda" becomes the current GPU, such as "cuda:0".

    Some functions of torch.cuda, `set_per_process_memory_fraction` among them, refuse a device
    without an index.
    """
    if str(device) != "cuda":
        return device
    return torch.device("cuda", torch.cuda.current_device())


def expands_segments(system: str, release: str, *, is_configured: bool) -> bool:
    """Return whether torch's allocator shall grow its segments, which fragments far less.

    Growing needs CUDA's virtual memory, which WSL 2, Windows and Jetson do not have. What the user has
    configured stays: PYTORCH_ALLOC_CONF=expandable_segments:False switches it off.
    """
    kernel = release.lower()
    is_plain_linux = system == "Linux" and "microsoft" not in kernel and "tegra" not in kernel
    return is_plain_linux and not is_configured


def prepare_allocator() -> None:
    """Let torch's allocator grow its segments where that works. Call it before CUDA is first used."""
    is_configured = allocator_is_configured()
    if not expands_segments(platform.system(), platform.release(), is_configured=is_configured):
        return
    try:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    except (AttributeError, RuntimeError, ValueError) as error:
        _log.info("the allocator keeps its settings: %s", error)
