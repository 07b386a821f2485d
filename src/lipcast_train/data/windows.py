"""Windows of encoded clips: what the transformer sees of a clip in one step, and where it believes to be.

Drawn at random: the clip, the first latent, the position in time (from the beginning of a video up to
`MAX_POSITION`), how far ahead each block's reference is placed, the reference (the portrait, or a latent of
the clip, as after the first clip of a video), the prompt (now and then none) and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from lipcast_train.data.cache import EncodedClip, LatentCache
from lipcast_train.data.pool import dice, noise_like
from lipcast_train.training.devices import Share

MAX_POSITION = 2100
"""Latest position of a window, in latents (5.6 minutes)."""
NEAREST, FARTHEST = 4, 30
"""Distances of the reference ahead of a block, as while generating."""
_AT_THE_BEGINNING, _SWAPPED, _NO_PROMPT = 0.3, 0.4, 0.1


@dataclass(frozen=True, slots=True)
class Window:
    """One sample, on the CPU."""

    clean_CFHW: Tensor
    noise_CFHW: Tensor
    ref_C1HW: Tensor
    motion_CFHW: Tensor
    features_LEV: Tensor
    weights_HW: Tensor
    prompt: str
    first_frame: int
    distances: tuple[int, ...]
    level: float
    """Uniform from 0 to 1: the objective makes a noise level of it."""


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Samples side by side, on the device; `levels` as in `Window`."""

    clean_BCFHW: Tensor
    noise_BCFHW: Tensor
    ref_BC1HW: Tensor
    motion_BCFHW: Tensor
    features_BLEV: Tensor
    weights_B1HW: Tensor
    prompts: tuple[str, ...]
    first_frames: tuple[int, ...]
    distances: tuple[tuple[int, ...], ...]
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WindowShape:
    """Latents of a window and of a block, and how many motion latents there are."""

    frames: int
    latents_per_block: int
    motion_latents: int


def draw_window(clip: EncodedClip, shape: WindowShape, random: Random) -> Window:
    """Cut one window out of a clip."""
    last = clip.latents_CFHW.shape[1] - shape.frames
    is_first = last == 0 or random.random() < _AT_THE_BEGINNING
    first = 0 if is_first else random.randrange(last + 1)
    position = 0 if is_first else round(math.exp(random.uniform(0, math.log(MAX_POSITION))))
    clean = clip.latents_CFHW[:, first : first + shape.frames]
    ref = clip.still_CFHW[:, 1:2]
    if position >= shape.frames and random.random() < _SWAPPED:
        at = random.randrange(clip.latents_CFHW.shape[1])
        ref = clip.latents_CFHW[:, at : at + 1]
    num_blocks = shape.frames // shape.latents_per_block
    return Window(
        clean_CFHW=clean,
        noise_CFHW=noise_like(clean, random.getrandbits(62)),
        ref_C1HW=ref,
        motion_CFHW=_motion(clip.still_CFHW, shape.motion_latents),
        features_LEV=clip.features_LEV[:, :, 4 * first : 4 * (first + shape.frames)],
        weights_HW=clip.weights_HW,
        prompt="" if random.random() < _NO_PROMPT else clip.prompt,
        first_frame=position,
        distances=tuple(random.randint(NEAREST, FARTHEST) for _ in range(num_blocks)),
        level=random.random(),
    )


def _motion(still_CFHW: Tensor, count: int) -> Tensor:
    """Return the latents before the first: those of the portrait, or its third one throughout."""
    if still_CFHW.shape[1] >= count:
        return still_CFHW[:, :count]
    return still_CFHW[:, 2:3].expand(-1, count, -1, -1)


def window_batches(
    cache: LatentCache, shape: WindowShape, *, size: int, seed: int, device: torch.device
) -> Callable[[int, Share], WindowBatch]:
    """Return the batches of a phase, by step; all windows of a step are equally long."""

    def batch(step: int, share: Share) -> WindowBatch:
        choices = [dice(seed, "window", step, number) for number in range(size)]
        windows = [
            draw_window(cache.clip(random.randrange(len(cache))), shape, random)
            for random in share.of(choices)
        ]
        return collate(windows, device)

    return batch


def collate(windows: Sequence[Window], device: torch.device) -> WindowBatch:
    """Lay samples side by side on the device."""

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(window, name) for window in windows]).float().to(device)

    return WindowBatch(
        stacked("clean_CFHW"),
        stacked("noise_CFHW"),
        stacked("ref_C1HW"),
        stacked("motion_CFHW"),
        stacked("features_LEV"),
        stacked("weights_HW")[:, None],
        tuple(window.prompt for window in windows),
        tuple(window.first_frame for window in windows),
        tuple(window.distances for window in windows),
        tuple(window.level for window in windows),
    )
