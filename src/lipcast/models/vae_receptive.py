"""Frames of a causal network that have to be computed. Numbers only.

Two questions: up to which frame does the output of a layer change when its input stands still
(`settled_*`), and which layers must see a latent whose picture nobody wants (`latents_to_run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def settled_by_conv(head: int, length: int, num_past: int) -> int:
    """Return the frames until a convolution has settled; its input is constant from frame head - 1 on."""
    return min(length, head + num_past)


def settled_by_halving(head: int, length: int) -> tuple[int, int]:
    """Return (frames until it has settled, frames in all) of a temporal downsampling.

    Frame 0 passes; frame j >= 1 sees the frames 2j - 2, 2j - 1 and 2j of the input.
    """
    halved = 1 + (length - 1) // 2
    return min(halved, max(1, (head + 2) // 2) + 1), halved


@dataclass(frozen=True)
class Unit:
    """A part of the decoder: its frames per latent, and its convolutions in time, in series."""

    frames_per_latent: int
    num_convs: int


def latents_to_run(units: Sequence[Unit], num_past: int = 2) -> list[int]:
    """Return for each unit how many of the newest latents it must see when no picture is wanted.

    From the end: the last unit must remember `num_past` frames of its input. What a unit must
    give, plus what each of its convolutions looks back, is what the unit before it must give.
    """
    counts: list[int] = []
    needed, rate = 0, units[-1].frames_per_latent
    for unit in reversed(units):
        needed = -(-needed * unit.frames_per_latent // rate)
        rate = unit.frames_per_latent
        needed += num_past * unit.num_convs
        counts.append(-(-needed // rate))
    return counts[::-1]


def units_to_run(latents_to_run: Sequence[int], index: int, num_latents: int) -> int:
    """Return how many units, from the first, latent `index` of `num_latents` unwanted ones goes through.

    The first goes through all: it tells the layers that the video has begun.
    """
    if index == 0:
        return len(latents_to_run)
    return sum(count >= num_latents - index for count in latents_to_run)
