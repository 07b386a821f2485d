"""A video as the metrics see it: frames that can be read several times, and small curves.

Input: a file, or frames in memory. Output: `Footage`, and `Survey`: one pass over it, a few numbers
a frame and a thumbnail a frame. Memory grows by 13 kB a frame, whatever the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipcast.config.models import VIDEO_FPS
from lipcast.errors import InputError
from lipcast.lab.pictures import Floats, Frame, thumbnail
from lipcast.media.video import iter_frames, timing

THUMB_SIDE = 64
"""The short side of the pictures that stillness, joins and flicker are judged on, in pixels."""


@dataclass(frozen=True, slots=True)
class Footage:
    """Frames of a constant rate that can be read any number of times."""

    name: str
    fps: float
    open: Callable[[], Iterator[Frame]]
    """Begins at the first frame; each is uint8 RGB [H, W, 3]."""
    has_sound: bool = False

    @classmethod
    def of_file(cls, path: str | Path) -> Footage:
        """Read a video file. Raises InputError where it is no video."""
        _, fps, has_sound = timing(path)
        return cls(str(path), fps, lambda: iter_frames(path), has_sound)

    @classmethod
    def of_frames(cls, frames: Iterable[Frame], *, fps: float = VIDEO_FPS) -> Footage:
        """Wrap frames in memory."""
        kept = list(frames)
        return cls("frames", fps, lambda: iter(kept))


@dataclass(frozen=True, slots=True)
class Survey:
    """Measurements of one pass over a video, n frames long."""

    thumbs: Floats
    """Grey [n, h, w] in 0..255, the short side about `THUMB_SIDE`."""
    colours: Floats
    """Mean R, G, B [n, 3] in 0..255."""
    spreads: Floats
    """Standard deviation of R, G, B [n, 3] in 0..255."""
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def num_frames(self) -> int:
        return len(self.thumbs)

    @property
    def changes(self) -> Floats:
        """Mean absolute difference of each frame to the one before, grey levels, [n - 1]."""
        differences = np.diff(self.thumbs, axis=0)
        changes: Floats = np.abs(differences).mean(axis=(1, 2))
        return changes


def survey(footage: Footage) -> Survey:
    """Read every frame once."""
    thumbs: list[Floats] = []
    colours: list[Floats] = []
    spreads: list[Floats] = []
    size = (0, 0)
    for frame in footage.open():
        size = frame.shape[0], frame.shape[1]
        thumbs.append(thumbnail(frame, THUMB_SIDE))
        pixels = frame[::2, ::2].reshape(-1, 3).astype(np.float32)
        colours.append(pixels.mean(axis=0))
        spreads.append(pixels.std(axis=0))
    if not thumbs:
        raise InputError(f"expected a video, got {footage.name} without any picture")
    return Survey(np.stack(thumbs), np.stack(colours), np.stack(spreads), size)
