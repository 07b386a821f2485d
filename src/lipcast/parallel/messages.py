"""Messages between the main process and its ranks. Arrays travel as NumPy arrays.

The main process sends messages to all ranks in one order and never waits for an answer between two of them; a
rank handles them in that order. So every block that one rank sends to another is received there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.loading import LoadSettings
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.planning.layouts import Layout

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


# To a rank


@dataclass(frozen=True, slots=True)
class InitRank:
    """First message: what to load, and where the ranks of the group find each other."""

    rank: int
    layout: Layout
    settings: LoadSettings
    num_steps: int
    """Number of evaluated steps that the layout is planned for."""
    rendezvous: str
    """A file that all ranks can open; "env" where a launcher has set the environment for it."""
    num_threads: int


@dataclass(frozen=True, slots=True)
class EncodePortrait:
    """Encode a portrait [height, width, 3]; to the rank that decodes, before a video."""

    video: int
    spec: VideoSpec
    portrait_HWC: Pixels
    snapshot: SessionSnapshot | None
    motion_FHWC: Pixels | None = None
    """Last frames of a clip that the video goes on from."""
    num_characters: int = 1
    """Characters with a voice of their own, for which memory is planned."""


@dataclass(frozen=True, slots=True)
class StartSession:
    """Begin a video. The one before it, finished or not, is dropped."""

    video: int
    spec: VideoSpec
    ref_C1HW: Floats
    motion_CFHW: Floats
    context_TC: Floats
    later_contexts: dict[int, Floats]
    """Text embeddings by the block that each begins with."""
    snapshot: SessionSnapshot | None
    mask_AS: Floats | None = None
    """Tokens that the voice of each of several characters moves."""

    @property
    def num_characters(self) -> int:
        """Characters with a voice of their own."""
        return 1 if self.mask_AS is None else len(self.mask_AS)


@dataclass(frozen=True, slots=True)
class SetContext:
    """Change the text embedding when a block starts; before its speech features."""

    block: int
    context_TC: Floats


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """Speech features of a block, before its first step; of several characters [A, L, C, V]."""

    block: int
    features_LCV: Floats
    pose_CFHW: Floats | None = None
    """Latents of the block's pose, in a video that follows one."""


@dataclass(frozen=True, slots=True)
class EncodePose:
    """Encode the pose of a block; to the rank that decodes, in order.

    The first is of the pictures from the beginning of its clip on.
    """

    block: int
    pixels_FHWC: Pixels


@dataclass(frozen=True, slots=True)
class FirstLatent:
    """First clean latent of the video: the reference from the swap block on."""

    latent_C1HW: Floats


@dataclass(frozen=True, slots=True)
class RunTick:
    """Run the next tick; every stage runs the units of its own steps."""

    tick: Tick


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answer with `RankStats`."""

    number: int


@dataclass(frozen=True, slots=True)
class EndSession:
    """Give back the memory of a video, if it is still the current one."""

    video: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


# From a rank


@dataclass(frozen=True, slots=True)
class RankReady:
    """Answer to `InitRank`: the networks are loaded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Answer to `EncodePortrait`."""

    video: int
    ref_C1HW: Floats
    motion_CFHW: Floats


@dataclass(frozen=True, slots=True)
class PoseLatents:
    """Answer to `EncodePose`."""

    video: int
    block: int
    latent_CFHW: Floats


@dataclass(frozen=True, slots=True)
class BlockDone:
    """A block has passed its last step."""

    video: int
    block: int
    latent_CFHW: Floats


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Noisy latents that the steps of one stage took of a block, for a snapshot."""

    video: int
    block: int
    first_step: int
    latents: tuple[Floats, ...]


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of a block [frames, height, width, 3]."""

    video: int
    block: int
    pixels_FHWC: Pixels


@dataclass(frozen=True, slots=True)
class RankStats:
    """Answer to `GetStats`: seconds by part since the video began, and memory held."""

    number: int
    seconds: dict[str, float]
    memory: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class VideoFailed:
    """A rank ran out of memory and has given a video up; it is ready for the next one."""

    video: int
    rank: str
    reason: str


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The process of a rank ends because of an error."""

    kind: str
    """Name of the error's class."""
    reason: str
    """First line of the error's text."""
    trace: str
    cause: Literal["error", "out of memory", "lost peer"]
