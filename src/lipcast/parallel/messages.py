"""What the process that makes a video and its ranks say to each other. Arrays travel as numpy.

The video's process sends the same messages to all ranks in the same order, and never waits for one before
it sends the next; a rank does them in that order. So whatever one rank sends to another is received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """The first message: what to load, and where the ranks meet."""

    rank: int
    layout: Layout
    settings: LoadSettings
    num_steps: int
    """Of the videos that are expected."""
    meeting: str
    """A file that all ranks reach; "env" where a launcher has arranged it."""
    num_threads: int


@dataclass(frozen=True, slots=True)
class EncodePortrait:
    """To the decoder, before a video: the portrait in its pixels [height, width, 3]."""

    video: int
    spec: VideoSpec
    portrait_HWC: Pixels
    snapshot: SessionSnapshot | None


@dataclass(frozen=True, slots=True)
class StartSession:
    """A video begins. The one before it, finished or not, is forgotten."""

    video: int
    spec: VideoSpec
    ref_C1HW: Floats
    motion_CFHW: Floats
    context_TC: Floats
    snapshot: SessionSnapshot | None


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """Speech features of a block that will start."""

    block: int
    features_LCV: Floats


@dataclass(frozen=True, slots=True)
class FirstLatent:
    """What the anchor block and all after it refer to."""

    latent_C1HW: Floats


@dataclass(frozen=True, slots=True)
class RunTick:
    """The next tick of all stages; each does its own units."""

    tick: Tick


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answer with a `RankStats`."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End."""


# From a rank


@dataclass(frozen=True, slots=True)
class RankReady:
    """The networks are loaded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer to `EncodePortrait`."""

    video: int
    ref_C1HW: Floats
    motion_CFHW: Floats


@dataclass(frozen=True, slots=True)
class BlockDone:
    """A block has passed its last step."""

    video: int
    block: int
    latent_CFHW: Floats


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the steps of one stage took of a block, for whoever goes on from it later."""

    video: int
    block: int
    first_step: int
    latents: tuple[Floats, ...]


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a block [frames, height, width, 3]."""

    video: int
    block: int
    pixels_FHWC: Pixels


@dataclass(frozen=True, slots=True)
class RankStats:
    """What a rank has done since its video began, in seconds, and what it holds."""

    number: int
    seconds: dict[str, float]
    memory: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RankFailed:
    """A rank cannot go on. `lost_peer`: because another rank is gone."""

    kind: str
    sentence: str
    trace: str
    lost_peer: bool
