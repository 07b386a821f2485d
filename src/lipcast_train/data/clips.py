"""What a training clip is, and who gives clips.

Shapes: T frames at 25 frames/s, H and W pixels, N samples at 16 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MouthTrack:
    """How the mouth that a clip shows moves, 0 to 1 per frame; known where the clip was drawn."""

    opening_T: NDArray[np.float32]
    width_T: NDArray[np.float32]
    rounding_T: NDArray[np.float32]
    teeth_T: NDArray[np.float32]
    tongue_T: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A person who speaks: what a model is to make of a portrait, a voice and a prompt."""

    frames_THWC: NDArray[np.uint8]
    """RGB at 25 frames/s; T is a whole number of blocks."""
    wave_N: NDArray[np.float32]
    """Mono, 16 kHz, -1 to 1; exactly T / 25 seconds."""
    prompt: str
    portrait_HWC: NDArray[np.uint8]
    """The person at rest: the image that the model is given."""
    mouth: MouthTrack | None = None
    face_boxes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """Where "mouth" and "eyes" are, as x, y, width, height in pixels; the losses weight them."""


Voice = tuple[NDArray[np.float32], MouthTrack]
"""The sound of a clip, and how a mouth moves to it."""


class ClipSource(Protocol):
    """Gives clips by number; the same number always gives the same clip."""

    @property
    def side(self) -> int:
        """Height and width of the pictures, in pixels."""
        ...

    def __len__(self) -> int: ...

    def clip(self, index: int) -> Clip: ...

    def voice(self, index: int) -> Voice:
        """Return the sound of a clip and how a mouth moves to it, without drawing pictures."""
        ...
