"""A video that several ranks make, as a session sees it: an executor and a decoder.

Input: ticks and speech features. Output: clean blocks and frames, in order. Ticks are sent before
earlier ones have come out, so that every stage has its next one in time; `_AHEAD` bounds how many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcast.config.models import VIDEO_FRAMES_PER_LATENT
from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.decode import PendingFrames
from lipcast.engine.pose import PosePictures, first_of_clip
from lipcast.engine.session_builder import Conditioning
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.errors import CancelledError, MemoryBudgetError
from lipcast.parallel.messages import (
    AudioFeatures,
    BlockDone,
    Encoded,
    EncodePortrait,
    EncodePose,
    EndSession,
    FirstLatent,
    Floats,
    Frames,
    PoseLatents,
    RankStats,
    RunTick,
    SetContext,
    StartSession,
    StepInputs,
    VideoFailed,
)
from lipcast.parallel.rank_group import RankGroup, Where, everywhere
from lipcast.parallel.roles import Role

_AHEAD = 2
"""Number of blocks whose last step may be requested before the first of them has come out."""


class DistributedSession:
    """One video: keeps what arrives from the ranks until it is taken."""

    def __init__(self, ranks: RankGroup, number: int, spec: VideoSpec) -> None:
        self.spec = spec
        self.ranks, self._number = ranks, number
        self.is_current = True
        """Return whether no later video has begun with these ranks."""
        self._failure: VideoFailed | None = None
        self._clean: dict[int, Tensor] = {}
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._poses: dict[int, Tensor] = {}
        self._inputs: dict[int, dict[int, tuple[Floats, ...]]] = {}
        """Noisy latents by block and first step of a stage."""
        self._encoded: Encoded | None = None
        self._first_C1HW: Floats | None = None

    def open(self, conditioning: Conditioning, snapshot: SessionSnapshot | None) -> None:
        """Encode the portrait on the rank that decodes, then begin the video on every stage."""
        snapshot = None if snapshot is None else snapshot.to("cpu")
        spec, geometry = self.spec, self.spec.geometry
        mask_AS = conditioning.mask(geometry)
        portrait = conditioning.fit(geometry.height, geometry.width)
        last = conditioning.motion
        frames = None if last is None else last(geometry.height, geometry.width)
        characters = conditioning.num_characters
        asked = EncodePortrait(self._number, spec, portrait, snapshot, frames, characters)
        self.send(asked, lambda role: role.decodes)
        self._pump_until(lambda: self._encoded is not None)
        assert self._encoded is not None
        ref, motion = self._encoded.ref_C1HW, self._encoded.motion_CFHW
        context_TC = _floats(conditioning.context_TC)
        later = {block: _floats(x) for block, x in conditioning.later_contexts.items()}
        mask = None if mask_AS is None else _floats(mask_AS)
        opened = StartSession(self._number, spec, ref, motion, context_TC, later, snapshot, mask)
        self.send(opened, _has_steps)

    def send(self, message: Any, where: Where = everywhere) -> None:
        """Send a message of this video to the ranks.

        Raises CancelledError once another video has begun, MemoryBudgetError where a rank has given up.
        """
        self._check()
        self.ranks.send(message, where)

    def inputs_of(self, block: int) -> tuple[Tensor, ...]:
        """Wait for what each step took of a clean block, and return it."""
        count = len(self.spec.order.all_stages)
        self._pump_until(lambda: len(self._inputs.get(block, ())) == count)
        parts = self._inputs.pop(block)
        return tuple(torch.from_numpy(x) for _, part in sorted(parts.items()) for x in part)

    def first_latent(self) -> Floats:
        """Wait for the first clean latent of the video, and return it."""
        self._pump_until(lambda: self._first_C1HW is not None)
        assert self._first_C1HW is not None
        return self._first_C1HW

    def take_clean(self, block: int, *, wait: bool) -> Tensor | None:
        """Return the latents of a clean block; None if they have not arrived and `wait` is false."""
        latent: Tensor | None = self._take(self._clean, block, wait=wait)
        return latent

    def take_pose(self, block: int) -> Tensor:
        """Wait for the pose latents of a block, and return them."""
        latent: Tensor = self._take(self._poses, block, wait=True)
        return latent

    def take_frames(self, block: int) -> NDArray[np.uint8]:
        """Wait for the frames of a block, and return them."""
        frames: NDArray[np.uint8] = self._take(self._frames, block, wait=True)
        return frames

    def has_frames(self, block: int) -> bool:
        """Return whether `take_frames` would return at once."""
        self._pump(0.0)
        return block in self._frames

    def get_stats(self) -> list[RankStats]:
        """Return what every rank has done for this video."""
        self._check_current()
        return self.ranks.get_stats(self._keep)

    def release(self) -> None:
        """Let every rank give the memory of this video back; what is in flight is finished first."""
        self.ranks.post(EndSession(self._number))

    def _take(self, kept: dict[int, Any], block: int, *, wait: bool) -> Any:
        if wait:
            self._pump_until(lambda: block in kept)
        else:
            self._pump(0.0)
        return kept.pop(block, None)

    def _pump_until(self, is_there: Callable[[], bool]) -> None:
        while not is_there():
            self._pump(None)
            self._check()

    def _pump(self, timeout_s: float | None) -> None:
        """Keep the messages that have arrived; wait for one at most."""
        self._check()
        while (received := self.ranks.receive(timeout_s)) is not None:
            self._keep(received[1])
            timeout_s = 0.0

    def _keep(self, message: Any) -> None:
        """Keep a message of this video; late ones of an earlier video are dropped."""
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
            case PoseLatents(_, block, latent_CFHW):
                self._poses[block] = torch.from_numpy(latent_CFHW)
            case VideoFailed():
                self._failure = message

    def _check(self) -> None:
        self._check_current()
        if self._failure is not None:
            raise MemoryBudgetError(
                f"{self._failure.rank} ran out of memory: {self._failure.reason}. Lower --size or "
                "--infer_frames, or use more GPUs; the model is ready for another video"
            )

    def _check_current(self) -> None:
        if not self.is_current:
            raise CancelledError(
                "another video has begun with this model; on several GPUs it makes one at a time"
            )


class PipelineExecutor:
    """All stages as one executor."""

    def __init__(self, video: DistributedSession, snapshot: SessionSnapshot | None) -> None:
        self._video = video
        self._expected: deque[int] = deque()
        self._next_block = 0 if snapshot is None else snapshot.next_block
        self._swap_block = video.spec.order.swap_block if snapshot is None else None
        """Block before which the stages are sent the first latent; with a snapshot they have it."""

    @property
    def num_outstanding(self) -> int:
        """Blocks that were run to their last step and have not come out yet."""
        return len(self._expected)

    def start(self, block: int, features_LCV: Tensor, *, pose_CFHW: Tensor | None = None) -> None:
        """Send every stage the features of a block and, before the swap block, its new reference."""
        if block == self._swap_block:
            self._video.send(FirstLatent(self._video.first_latent()), _has_steps)
        pose = None if pose_CFHW is None else _floats(pose_CFHW)
        self._video.send(AudioFeatures(block, _floats(features_LCV), pose), _has_steps)
        self._next_block = block + 1

    def set_context(self, context_TC: Tensor) -> None:
        """Change the text embedding [T, C] on every stage for the blocks that begin from now on."""
        self._video.send(SetContext(self._next_block, _floats(context_TC)), _has_steps)

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Have every stage run its units; return the clean blocks that have arrived, see `Executor.run`."""
        if tick:
            self._video.send(RunTick(tick))
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
        """Return what each step took of a block that has come out."""
        return self._video.inputs_of(block)


class RemotePose:
    """The pose of a video, encoded by the rank that decodes, one block ahead."""

    def __init__(self, video: DistributedSession, pictures: PosePictures, first_block: int) -> None:
        self._video, self._next_block = video, first_block
        geometry = video.spec.geometry
        self._block_frames = geometry.latents_per_block * VIDEO_FRAMES_PER_LATENT
        latent = first_block * geometry.latents_per_block
        first = first_of_clip(latent, geometry.window) * VIDEO_FRAMES_PER_LATENT
        self._num_before = first_block * self._block_frames - first
        """Pictures of the first block's clip that come before it."""
        self._frames = pictures.frames(first, geometry.height, geometry.width)

    def latents(self, block: int) -> Tensor:
        """Wait for the latents of the next block, and return them; ask for those of the one after it."""
        while self._next_block <= block + 1:
            count, self._num_before = self._block_frames + self._num_before, 0
            pixels = np.stack(list(islice(self._frames, count)))
            self._video.send(EncodePose(self._next_block, pixels), lambda role: role.decodes)
            self._next_block += 1
        return self._video.take_pose(block)


class RemoteDecoder:
    """The decoder of another rank, which gets the blocks as soon as they are clean."""

    def __init__(self, video: DistributedSession, first_block: int) -> None:
        self._video, self._next_block = video, first_block

    def submit(self, latent_CFHW: Tensor) -> PendingFrames:
        """Return the pending frames of the next block; its latents have been sent to the decoder already."""
        del latent_CFHW
        self._next_block += 1
        return _RemoteFrames(self._video, self._next_block - 1)


@dataclass(frozen=True, slots=True)
class _RemoteFrames:
    video: DistributedSession
    block: int

    @property
    def decode_s(self) -> float:
        """Zero: the rank that decodes reports its own seconds."""
        return 0.0

    @property
    def is_ready(self) -> bool:
        """Whether `collect` would return at once."""
        return self.video.has_frames(self.block)

    def collect(self) -> NDArray[np.uint8]:
        """Wait for the frames, and return them."""
        return self.video.take_frames(self.block)


def _floats(x: Tensor) -> Floats:
    array: Floats = x.detach().float().cpu().numpy()
    return array


def _has_steps(role: Role) -> bool:
    return role.stage is not None
