"""Pictures of a clip at 25 a second, as a stream: a video file, or a folder of pictures.

Input: a path. Output: pictures in order, resized and cropped as a portrait is. Memory does not grow with the
length. Raises InputError: not there, empty, broken, without pictures, or of a size that cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.config.direction import Direction, PoseEnd
from lipcast.config.models import VIDEO_FPS
from lipcast.errors import InputError
from lipcast.media.image import fit_portrait, load_portrait
from lipcast.media.picture_file import check_size
from lipcast.media.video import Frames, frame_times, iter_frames

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_MOST_CROPPED = 1.1
"""How far the aspect of a clip that a video goes on from may be from the video's."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that can be read any number of times."""

    name: str
    size: tuple[int, int]
    """Height and width in pixels."""
    indices: NDArray[np.int64]
    """For each frame at 25 a second, the picture that is nearest in time."""
    open: Callable[[], Iterator[Frames]]
    """Begins at the first picture; each is uint8 RGB [H, W, 3]."""

    @classmethod
    def of(cls, path: str | Path) -> Clip:
        """Open a video file, or a folder of pictures in the order of their names, 25 a second."""
        path = Path(path)
        if path.is_dir():
            pictures = _pictures_in(path)
            indices = np.arange(len(pictures))
            return cls._checked(str(path), indices, lambda: map(_read, pictures))
        indices = _nearest(frame_times(path))
        return cls._checked(str(path), indices, lambda: iter_frames(path))

    @classmethod
    def _checked(
        cls, name: str, indices: NDArray[np.int64], pictures: Callable[[], Iterator[Frames]]
    ) -> Clip:
        first = next(pictures(), None)
        if first is None:
            raise InputError(f"expected a video, got {name} without any picture")
        height, width = first.shape[:2]
        check_size(width, height, name)
        return cls(name, (height, width), indices, pictures)

    @property
    def num_frames(self) -> int:
        """Length in frames at 25 a second."""
        return len(self.indices)

    def frames(self, first: int, height: int, width: int) -> Iterator[Frames]:
        """Yield the frames [height, width, 3] from `first` on, at 25 a second.

        Where fewer pictures can be decoded than the file has, the last one stands for the rest.
        """
        from PIL import Image

        pictures, number = self.open(), -1
        picture: Frames | None = None
        for index in self.indices[first:]:
            while number < index and (following := next(pictures, None)) is not None:
                picture, number = following, number + 1
            assert picture is not None, "the first picture was read"
            yield fit_portrait(Image.fromarray(picture), height, width)

    def last(self, count: int, height: int, width: int) -> Frames:
        """Return the last frames [count, height, width, 3]; a short clip's first picture stands before it."""
        frames = list(self.frames(max(0, self.num_frames - count), height, width))
        return np.stack([frames[0]] * (count - len(frames)) + frames)

    def check_aspect(self, height: int, width: int) -> None:
        """Raise InputError where much of the clip would be cropped in a video of this size."""
        clip_height, clip_width = self.size
        ratio = clip_width * height / (clip_height * width)
        if not 1 / _MOST_CROPPED < ratio < _MOST_CROPPED:
            raise InputError(
                f"{self.name}: expected a clip with the aspect of the video, {width}x{height}, got "
                f"{clip_width}x{clip_height}; crop it, or give a portrait of the clip's aspect"
            )


@dataclass(frozen=True, slots=True)
class PoseClip:
    """A clip that a video follows, and what comes after its end."""

    clip: Clip
    end: PoseEnd

    def frames(self, first: int, height: int, width: int) -> Iterator[Frames]:
        """Yield the pictures of a video's frames from `first` on, without end."""
        clip = self.clip
        if self.end == "loop":
            begin = clip.frames(first % clip.num_frames, height, width)
            again = (clip.frames(0, height, width) for _ in repeat(None))
            yield from chain(begin, chain.from_iterable(again))
        held: Frames | None = None
        for held in clip.frames(first, height, width):
            yield held
        if self.end == "black":
            held = np.zeros((height, width, 3), np.uint8)
        elif held is None:  # the clip has ended before
            held = clip.last(1, height, width)[0]
        yield from repeat(held)


def open_pose(direction: Direction) -> PoseClip | None:
    """Open the clip that a directed video follows; None where it follows none."""
    path = direction.pose_video
    return None if path is None else PoseClip(Clip.of(path), direction.pose_end)


def open_motion(
    direction: Direction, count: int, *, height: int, width: int
) -> Callable[[int, int], Frames] | None:
    """Return what reads the last frames of the clip that a directed video goes on from, in any size.

    None where it begins anew. `height` and `width`: of the video. Raises InputError.
    """
    if direction.continue_from is None:
        return None
    clip = Clip.of(direction.continue_from)
    clip.check_aspect(height, width)
    return partial(clip.last, count)


def _nearest(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of the picture nearest to each 25th of a second; `times` are from the first."""
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 1 / VIDEO_FPS
    count = max(1, int((times[-1] + gap) * VIDEO_FPS + 1e-3))
    wanted = np.arange(count) / VIDEO_FPS
    after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    before = (after - 1).clip(0)
    is_before = wanted - times[before] <= times[after] - wanted
    nearest: NDArray[np.int64] = np.where(is_before, before, after)
    return nearest


def files_of(path: Path) -> list[Path]:
    """Return the files that a clip is read from."""
    return _pictures_in(path) if path.is_dir() else [path]


def _pictures_in(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]
    if not found:
        raise InputError(
            f"{folder}: there are no pictures in this folder; name one with PNG or JPEG files"
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[str, int]]:
    """Return a key that sorts frame-2 before frame-10."""
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text.lower(), int(number or 0)) for text, number in parts]


def _read(path: Path) -> Frames:
    return np.asarray(load_portrait(path))
