"""What a live session gives out and is bounded by: frames, states, limits, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS


class LiveState(Enum):
    """What a live session is doing."""

    IDLE = "idle"
    LISTENING = "listening"
    """Sound has come, but not enough for a block."""
    SPEAKING = "speaking"
    DRAINING = "draining"
    """The utterance has ended, and the rest of it is being spoken."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class AVFrame:
    """One picture and exactly the sound that is heard while it shows (40 ms)."""

    picture: NDArray[np.uint8]
    """RGB [height, width, 3]."""
    sound: NDArray[np.float32]
    """[sample_rate / 25, channels]."""
    sample_rate: int
    index: int
    """Number among the frames given out, without gaps."""
    epoch: int
    is_speech: bool
    """False for a picture of an idle face, whose sound is silence."""
    is_filler: bool = False
    """Whether the utterance ended before this frame of its last block; the sound is silence."""
    spoken_s: float = 0.0
    """Sound of this epoch that was pushed and has been given out, this frame's included."""

    @property
    def is_heard(self) -> bool:
        """Whether its sound was pushed: it is neither idle nor what fills up the last block."""
        return self.is_speech and not self.is_filler

    @property
    def time_s(self) -> float:
        """Time of the frame since the first one."""
        return self.index / VIDEO_FPS


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """How much of a live session may wait."""

    max_pending_s: float = 60.0
    """Sound that waits to be spoken; more is not accepted."""
    max_frames_ahead: int = 50
    """Pictures of speech that wait for the consumer, a block more at most; then no more are made."""
    patience_s: float = 0.6
    """An utterance ends by itself where no sound has come for so long and nothing is left to show."""


@dataclass(frozen=True, slots=True)
class LiveStats:
    """What a live session has done so far."""

    state: LiveState
    epoch: int
    num_frames_made: int
    num_frames_given: int
    num_frames_queued: int
    num_idle_dropped: int
    """Idle pictures that were dropped because speech was ready."""
    num_interrupted_dropped: int
    """Pictures of an earlier epoch that were dropped."""
    pending_s: float
    dropped_sound_s: float
    num_interrupts: int
    num_utterances: int
    """Utterances of which pictures were made."""
    first_frame_s: float | None
    """From the first sound of the last utterance that did not wait for another to its first picture."""
    block_s: float | None
    """Seconds of computing for the last block."""
