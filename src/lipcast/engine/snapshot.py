"""The state of a video from which another session can continue it.

A snapshot holds the last clean blocks, with their speech features and the inputs of every denoising step, and
the first clean latent, from which a later reference is made. Rings are refilled from it by a defined replay:
every earlier block passes through the transformer once per step, as it did at first. Two runs that continue
from the same snapshot give the same video, bit for bit. A snapshot is longer than the attention window: the
oldest block of a replay attends to nothing, and what that changes must have left the window before the video
continues; the decoder looks back too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_REPLAYED_WINDOWS = 2
"""Latents went astray by 0.011 in the first block with 1, by 0.002 with 2, by 0.001 with 3 (tiny model)."""
_DECODER_LATENTS = 14
"""With 7, frames changed at a seam by 4.7 grey levels in place of 2.5; from 14 on as anywhere."""


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """A finished block: its clean latents [C, F, H, W] and its speech features [L, C, V].

    Of several characters the features are [A, L, C, V].
    """

    latent_CFHW: Tensor
    features_LCV: Tensor
    inputs: tuple[Tensor, ...] = ()
    """Input latents of each step, [C, F, H, W]. Empty if not known, or if size or steps have changed since:
    then the clean latents, noised to the level of each step with the noise they began with, stand for it."""
    pose_CFHW: Tensor | None = None
    """Latents of the block's pose, in a video that follows one."""


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """The blocks before `next_block`, oldest first: as many as a recorder keeps, or all there were."""

    next_block: int
    blocks: tuple[BlockSnapshot, ...]
    first_C1HW: Tensor
    """The first clean latent of the video."""

    def to(self, device: torch.device | str) -> SessionSnapshot:
        """Return the same snapshot on a device."""
        blocks = tuple(
            BlockSnapshot(
                block.latent_CFHW.to(device),
                block.features_LCV.to(device),
                tuple(latent.to(device) for latent in block.inputs),
                None if block.pose_CFHW is None else block.pose_CFHW.to(device),
            )
            for block in self.blocks
        )
        return SessionSnapshot(self.next_block, blocks, self.first_C1HW.to(device))

    def __post_init__(self) -> None:
        assert 1 <= len(self.blocks) <= self.next_block

    @property
    def first_block(self) -> int:
        """The number of the oldest block that is remembered."""
        return self.next_block - len(self.blocks)


@dataclass(frozen=True, slots=True)
class BlockRange:
    """A part of a video: from what was (None: from the beginning) up to `end_block`, not included."""

    snapshot: SessionSnapshot | None = None
    end_block: int | None = None
    """None: to the end of the sound."""

    @property
    def first_block(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.next_block


WHOLE_VIDEO = BlockRange()


class SnapshotRecorder:
    """Collects the snapshot of a video while it is made."""

    def __init__(self, window: int, latents_per_block: int) -> None:
        replayed = _REPLAYED_WINDOWS * -(-window // latents_per_block)
        kept = max(replayed, -(-_DECODER_LATENTS // latents_per_block))
        self._blocks: deque[BlockSnapshot] = deque(maxlen=kept)
        self._num_blocks = 0
        self._first_C1HW: Tensor | None = None

    def add(self, block: BlockSnapshot) -> None:
        """Record the next finished block."""
        if self._first_C1HW is None:
            self._first_C1HW = block.latent_CFHW[:, :1].clone()
        self._blocks.append(block)
        self._num_blocks += 1

    def resume(self, snapshot: SessionSnapshot) -> None:
        """Begin where another recorder ended."""
        self._blocks.extend(snapshot.blocks)
        self._num_blocks, self._first_C1HW = snapshot.next_block, snapshot.first_C1HW

    def snapshot(self) -> SessionSnapshot | None:
        """Return the snapshot so far; None before the first block."""
        if self._first_C1HW is None:
            return None
        return SessionSnapshot(self._num_blocks, tuple(self._blocks), self._first_C1HW)
