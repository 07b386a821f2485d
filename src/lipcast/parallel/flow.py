"""Latents on their way between two ranks, beside the computation.

Blocks go out and come in in their order, so that no label is needed. State: what is under way.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

_MAX_UNDER_WAY = 2
"""Sent tensors that are kept until they have arrived; beyond them the sender waits."""


class LatentReceiver:
    """Blocks from the rank before."""

    def __init__(self, source: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._source, self._shape, self._device = source, shape, device
        self._coming: deque[tuple[int, Tensor, dist.Work]] = deque()

    def expect(self, block: int) -> None:
        """Begin to receive the next block."""
        latent = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        work = dist.irecv(latent, self._source)
        assert work is not None
        self._coming.append((block, latent, work))

    def take(self, block: int) -> Tensor:
        """The block that was expected first; waits for it."""
        expected, latent, work = self._coming.popleft()
        assert block == expected, "blocks come in in order"
        work.wait()
        return latent


class LatentSender:
    """Blocks to the rank after."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._going: deque[tuple[Tensor, dist.Work]] = deque()

    def send(self, latent: Tensor) -> None:
        """Begin to send a block; waits where too many are under way."""
        latent = latent.contiguous()
        work = dist.isend(latent, self._target)
        assert work is not None
        self._going.append((latent, work))
        while len(self._going) > _MAX_UNDER_WAY:
            self._going.popleft()[1].wait()

    def finish(self) -> None:
        """Wait until everything has arrived."""
        while self._going:
            self._going.popleft()[1].wait()
