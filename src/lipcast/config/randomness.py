"""Everything random about a video, as pure functions of (seed, position).

The same seed gives the same video on every device, with every schedule, resumed or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

MIN_COND_DISTANCE = 4
MAX_COND_DISTANCE = 30

CondDistance = Callable[[int, int], int]
"""(block, step) -> how many latent frames the reference lies ahead of the block."""


@dataclass(frozen=True, slots=True)
class SeededDistance:
    """A distance of 4..30 drawn once per block, as in training; the steps of a block share it."""

    seed: int

    def __call__(self, block: int, step: int) -> int:
        del step
        digest = hashlib.sha256(f"{self.seed}/{block}".encode()).digest()
        span = MAX_COND_DISTANCE - MIN_COND_DISTANCE + 1
        return MIN_COND_DISTANCE + int.from_bytes(digest[:8], "big") % span


@dataclass(frozen=True, slots=True)
class FixedDistance:
    """The same distance everywhere."""

    value: int

    def __call__(self, block: int, step: int) -> int:
        del block, step
        return self.value
