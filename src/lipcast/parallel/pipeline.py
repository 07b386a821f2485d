"""A video that a crew makes, as a session sees it: an executor and a decoder.

Input: ticks and voices. Output: clean blocks and frames, in order. Ticks are sent ahead of what has come out,
so that every stage has its next one at hand; how far is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.decode import PendingFrames
from lipcast.engine.session_builder import Conditioning
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.errors import CancelledError
from lipcast.parallel.messages import (
    AudioFeatures,
    BlockDone,
    Encoded,
    EncodePortrait,
    FirstLatent,
    Floats,
    Frames,
    RankStats,
    RunTick,
    StartSession,
    StepInputs,
)
from lipcast.parallel.rank_group import RankGroup
from lipcast.parallel.roles import Role

_AHEAD = 2
"""Blocks whose last step is asked for before the first of them has come out."""


class DistributedSession:
    """One video of a crew: what has come from its ranks, kept until it is asked for."""

    def __init__(self, distributed: RankGroup, number: int, spec: VideoSpec) -> None:
        self.spec = spec
        self.distributed, self._number = distributed, number
        self.is_current = True
        self._clean: dict[int, Tensor] = {}
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._inputs: dict[int, dict[int, tuple[Floats, ...]]] = {}
        """By block and first step of a stage."""
        self._encoded: Encoded | None = None
        self._first_C1HW: Floats | None = None

    def open(self, conditioning: Conditioning, snapshot: SessionSnapshot | None) -> None:
        """Encode the portrait where the decoder is, then let every stage get ready."""
        snapshot = None if snapshot is None else snapshot.to("cpu")
        spec, geometry = self.spec, self.spec.geometry
        portrait = conditioning.fit(geometry.height, geometry.width)
        self.distributed.send(
            EncodePortrait(self._number, spec, portrait, snapshot), lambda role: role.decodes
        )
        self._pump_until(lambda: self._encoded is not None)
        assert self._encoded is not None
        ref, motion = self._encoded.ref_C1HW, self._encoded.motion_CFHW
        context_TC = conditioning.context_TC.float().cpu().numpy()
        opened = StartSession(self._number, spec, ref, motion, context_TC, snapshot)
        self.distributed.send(opened, _has_steps)

    def inputs_of(self, block: int) -> tuple[Tensor, ...]:
        """What each step took of a clean block; waits for the stages to say so."""
        count = len(self.spec.order.all_stages)
        self._pump_until(lambda: len(self._inputs.get(block, ())) == count)
        parts = self._inputs.pop(block)
        return tuple(torch.from_numpy(x) for _, part in sorted(parts.items()) for x in part)

    def first_latent(self) -> Floats:
        """The first latent of the video; waits for it."""
        self._pump_until(lambda: self._first_C1HW is not None)
        assert self._first_C1HW is not None
        return self._first_C1HW

    def take_clean(self, block: int, *, wait: bool) -> Tensor | None:
        """The latents of a clean block; None where they have not come and nobody waits."""
        latent: Tensor | None = self._take(self._clean, block, wait=wait)
        return latent

    def take_frames(self, block: int) -> NDArray[np.uint8]:
        """The frames of a block; waits for them."""
        frames: NDArray[np.uint8] = self._take(self._frames, block, wait=True)
        return frames

    def has_frames(self, block: int) -> bool:
        """Whether `take_frames` would return at once."""
        self._pump(0.0)
        return block in self._frames

    def tell(self) -> list[RankStats]:
        """What every rank has done for this video."""
        self._check()
        return self.distributed.tell(self._keep)

    def _take(self, kept: dict[int, Any], block: int, *, wait: bool) -> Any:
        if wait:
            self._pump_until(lambda: block in kept)
        else:
            self._pump(0.0)
        return kept.pop(block, None)

    def _pump_until(self, is_there: Callable[[], bool]) -> None:
        while not is_there():
            self._pump(None)

    def _pump(self, timeout_s: float | None) -> None:
        """Keep what has come from the ranks; waits for one message at most."""
        self._check()
        while (received := self.distributed.receive(timeout_s)) is not None:
            self._keep(received[1])
            timeout_s = 0.0

    def _keep(self, message: Any) -> None:
        """Messages of an earlier video are late, and of no use."""
        if getattr(message, "video", None) != self._number:
            return
        match message:
            case Encoded():
                self._encoded = message
            case BlockDone(_, block, latent_CFHW):
                self._clean[block] = torch.from_numpy(latent_CFHW)
                if block == 0:
                    self._first_C1HW = latent_CFHW[:, :1].copy()
            case StepInputs(_, block, first_step, latents):
                self._inputs.setdefault(block, {})[first_step] = latents
            case Frames(_, block, pixels_FHWC):
                self._frames[block] = pixels_FHWC

    def _check(self) -> None:
        if not self.is_current:
            raise CancelledError("another video was begun with this model; several GPUs make one")


class PipelineExecutor:
    """The stages of a crew as one executor."""

    def __init__(self, video: DistributedSession, snapshot: SessionSnapshot | None) -> None:
        self._video = video
        self._expected: deque[int] = deque()
        self._anchor_block = video.spec.order.anchor_block if snapshot is None else None
        """The block that a first latent is sent out for; with a past the stages have it."""

    @property
    def num_outstanding(self) -> int:
        return len(self._expected)

    def start(self, block: int, features_LCV: Tensor) -> None:
        """Tell every stage the voice of a block, and once what it shall refer to from now on."""
        if block == self._anchor_block:
            self._video.distributed.send(FirstLatent(self._video.first_latent()), _has_steps)
        features = features_LCV.detach().float().cpu().numpy()
        self._video.distributed.send(AudioFeatures(block, features), _has_steps)

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Have every stage do its units; blocks come out later, the next one if there are no units."""
        if tick:
            self._video.distributed.send(RunTick(tick))
            last = self._video.spec.order.num_steps - 1
            self._expected.extend(unit.block for unit in tick if unit.step == last)
        found: list[tuple[int, Tensor]] = []
        while self._expected:
            wait = len(self._expected) > _AHEAD or not (tick or found)
            latent = self._video.take_clean(self._expected[0], wait=wait)
            if latent is None:
                break
            found.append((self._expected.popleft(), latent))
        return found

    def inputs_of(self, block: int) -> tuple[Tensor, ...]:
        """What each step took of a block that has come out."""
        return self._video.inputs_of(block)


class RemoteDecoder:
    """The decoder of a crew: blocks are on their way to it as soon as they are clean."""

    def __init__(self, video: DistributedSession, first_block: int) -> None:
        self._video, self._next_block = video, first_block

    def submit(self, latent_CFHW: Tensor) -> PendingFrames:
        """The frames of the next block, whose latents the decoder has already."""
        del latent_CFHW
        self._next_block += 1
        return _RemoteFrames(self._video, self._next_block - 1)


@dataclass(frozen=True, slots=True)
class _RemoteFrames:
    video: DistributedSession
    block: int

    @property
    def decode_s(self) -> float:
        """Nothing: the rank that decodes tells its own seconds."""
        return 0.0

    @property
    def is_ready(self) -> bool:
        return self.video.has_frames(self.block)

    def collect(self) -> NDArray[np.uint8]:
        return self.video.take_frames(self.block)


def _has_steps(role: Role) -> bool:
    return role.stage is not None
