"""Latents that pass from rank to rank while both compute.

They travel in host memory over the group's gloo half: the latents of a block are under 1 MB. NCCL would do
worse. Its first send or receive between two ranks makes a communicator and holds the host thread until the
other rank calls too, so ranks block each other where that one first waits for a collective of this one; and
a receive that is posted early occupies the GPU until it is served. gloo returns at once from both.
Blocks are sent and received in order, so they need no tag. State: the transfers that are not finished.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.parallel.roles import Role

_MAX_UNFINISHED = 2
"""Number of sent blocks that are kept until they have arrived; beyond it the sender waits."""


class LatentReceiver:
    """Receives blocks from the previous rank."""

    def __init__(self, source: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._source, self._shape, self._device = source, shape, device
        self._posted: deque[tuple[int, Tensor, dist.Work]] = deque()

    def expect(self, block: int) -> None:
        """Begin to receive the next block; return at once."""
        latent = torch.empty(self._shape, dtype=torch.float32)
        work = dist.irecv(latent, self._source)
        assert work is not None
        self._posted.append((block, latent, work))

    def take(self, block: int) -> Tensor:
        """Wait for the block that was expected first; return it on the device of this rank."""
        expected, latent, work = self._posted.popleft()
        assert block == expected, "blocks are received in order"
        work.wait()
        return latent.to(self._device)


class LatentSender:
    """Sends blocks to the next rank."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._unfinished: deque[tuple[Tensor, dist.Work]] = deque()

    def send(self, latent: Tensor) -> None:
        """Begin to send a block; wait only while too many are unfinished."""
        latent = latent.cpu().contiguous()
        work = dist.isend(latent, self._target)
        assert work is not None
        self._unfinished.append((latent, work))
        while len(self._unfinished) > _MAX_UNFINISHED:
            self._unfinished.popleft()[1].wait()

    def finish(self) -> None:
        """Wait until every block has arrived."""
        while self._unfinished:
            self._unfinished.popleft()[1].wait()


class LatentLink:
    """The latents that one rank receives and sends during one video.

    A rank that has given the video up calls `skip` where others call `take` and `send`: its neighbours then
    go on and are ready for the next video too.
    """

    def __init__(self, role: Role, spec: VideoSpec, device: torch.device) -> None:
        geometry, num_steps = spec.geometry, spec.order.num_steps
        size = geometry.latent_height, geometry.latent_width
        self._shape = geometry.latent_channels, geometry.latents_per_block, *size
        steps = role.steps(num_steps)
        self._first_step = steps.start if steps else num_steps - 1
        """A stage takes a block in when it starts it, a decoder when the block becomes clean."""
        self._last_step = steps.stop - 1 if steps else None
        source, target = role.prev_rank, role.next_rank
        self._receiver = None if source is None else LatentReceiver(source, self._shape, device)
        self._sender = None if target is None else LatentSender(target)
        self._last_taken = self._last_sent = -1

    def expect(self, tick: Tick) -> None:
        """Begin to receive the blocks that a tick will take; return at once."""
        if self._receiver is not None:
            for block in self._taken_in(tick):
                self._receiver.expect(block)

    def take(self, block: int) -> Tensor | None:
        """Wait for a block of the previous rank; return None on the first stage."""
        if self._receiver is None:
            return None
        latent = self._receiver.take(block)
        self._last_taken = block
        return latent

    def send(self, block: int, latent: Tensor) -> None:
        """Begin to send a block to the next rank, if there is one."""
        if self._sender is not None:
            self._sender.send(latent)
            self._last_sent = block

    def skip(self, tick: Tick) -> None:
        """Drop what the tick would take and send zeros for what it would send, except what is done."""
        for block in self._taken_in(tick):
            if block > self._last_taken:
                self.take(block)
        for unit in tick:
            if unit.step == self._last_step and unit.block > self._last_sent:
                self.send(unit.block, torch.zeros(self._shape))

    def finish(self) -> None:
        """Wait until every block that was sent has arrived."""
        if self._sender is not None:
            self._sender.finish()

    def _taken_in(self, tick: Tick) -> list[int]:
        return [unit.block for unit in tick if unit.step == self._first_step]
