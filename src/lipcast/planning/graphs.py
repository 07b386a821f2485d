"""CUDA graphs of a session's ticks: how many there are, and the memory that they take."""

from __future__ import annotations

from math import gcd, lcm

from lipcast.config.geometry import Geometry

MAX_GRAPHS = 32
"""Recordings that a session holds at most; a video that would need more does without."""
BYTES_PER_LAUNCH = 4096
"""What the driver keeps of a recorded launch; assumed, `benchmarks/gpu_check.py fast` measures it."""


def num_graphs(geometry: Geometry, *, num_lanes: int, ticks_per_block: int) -> int:
    """Return how many different ticks a running video has: blocks return to their places in the ring.

    A block also takes one of `num_lanes` sets of inputs, in turn.
    """
    window, block = geometry.window, geometry.latents_per_block
    phases = window // gcd(window, block)
    return ticks_per_block * lcm(phases, num_lanes)
