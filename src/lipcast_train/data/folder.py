"""Real clips: videos with sound in a folder, cut into whole blocks.

Input: a folder of .mp4, .m4v, .mov, .mkv or .webm files; a .txt of the same name beside one is its prompt.
Output: clips at 25 frames/s and 16 kHz, cropped to the face where the face detector is installed, else to the
middle. Videos are read as streams: clips that are asked for in order cost one pass.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.config.text_file import read_text
from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.audio import read_speech
from lipcast.media.face_crop import Square, face_square
from lipcast.media.face_detector import can_find_faces
from lipcast.media.mp4 import num_pictures
from lipcast.media.video import iter_frames, timing
from lipcast_train.data.clips import Clip, Voice
from lipcast_train.data.drive import drive
from lipcast_train.data.hearing import SAMPLES_PER_FRAME
from lipcast_train.data.landmarks import boxes_of, face_points
from lipcast_train.data.procedural import FRAMES_PER_BLOCK
from lipcast_train.data.stamp import VIDEO_SUFFIXES
from lipcast_train.data.words import mood

_LOG = logger("train.folder")
_POINTS_EVERY = 8
"""Frames between two that are searched for the mouth and the eyes."""
Frame = NDArray[np.uint8]
Wave = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Video:
    """A usable file."""

    path: Path
    prompt: str
    fps: float
    num_pictures: int
    start_s: float
    num_clips: int


class _Reading:
    """A video that is read from its start, frame by frame of 25 a second."""

    def __init__(self, video: _Video, side: int) -> None:
        self.video, self._side = video, side
        self.wave = _speech(video.path, video.start_s)
        self.frame = 0
        """The next frame."""
        self._pictures = iter_frames(video.path)
        self._number, self._picture = -1, np.zeros((0, 0, 3), np.uint8)
        self._square: Square | None = None
        self.has_face = False
        """Whether the face detector sees one in the first picture."""

    def take(self, num_frames: int) -> Frame:
        """Return the next frames, cropped. Raises InputError where the file ends before."""
        taken = [self._fitted(self._at(self.frame + i)) for i in range(num_frames)]
        self.frame += num_frames
        return np.stack(taken)

    def skip(self, num_frames: int) -> None:
        """Pass over frames."""
        self.frame += num_frames

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._pictures, Generator):
            self._pictures.close()

    def _at(self, frame: int) -> Frame:
        wanted = int(frame * self.video.fps / VIDEO_FPS + 0.5)
        wanted = min(wanted, self.video.num_pictures - 1)
        while self._number < wanted:
            picture = next(self._pictures, None)
            if picture is None:
                raise InputError(
                    f"{self.video.path}: ends after {self._number + 1} of {self.video.num_pictures} "
                    "pictures; repair the file, or take it out of the folder"
                )
            self._number, self._picture = self._number + 1, picture
            if self._square is None:
                self._square, self.has_face = _square(picture)
        return self._picture

    def _fitted(self, picture: Frame) -> Frame:
        from PIL import Image

        image = Image.fromarray(picture)
        size = self._side, self._side
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=self._square))


class FolderClips:
    """A source of clips from a folder of videos; `skipped` says which files were left out, and why."""

    def __init__(self, folder: Path, *, num_blocks: int = 8, side: int = 256) -> None:
        """Look at every video. Raises InputError where none can be used.

        A file that is broken, has no sound or is shorter than a clip is skipped with a warning.
        """
        self.num_blocks, self.side = num_blocks, side
        self.skipped: dict[Path, str] = {}
        self._videos: list[_Video] = []
        self._reading: _Reading | None = None
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder of videos, found none there")
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
            self._add(path)
        if self.skipped:
            _LOG.warning(
                "%s: %d of %d videos were skipped", folder, len(self.skipped),
                len(self.skipped) + len(self._videos),
            )  # fmt: skip
        if not self._videos:
            raise InputError(
                f"{folder}: expected videos with sound of {self.clip_s:.2f} s or more (mp4, mov, mkv, "
                f"webm), found none that can be used ({len(self.skipped)} were skipped)"
            )

    @property
    def clip_s(self) -> float:
        """Length of a clip in seconds."""
        return self.num_blocks * FRAMES_PER_BLOCK / VIDEO_FPS

    def __len__(self) -> int:
        return sum(video.num_clips for video in self._videos)

    def voice(self, index: int) -> Voice:
        """Return the sound of a clip, and how a drawn mouth would move to it. Raises as `clip` does."""
        wave_N = self.clip(index).wave_N
        return wave_N, drive(wave_N, mood(np.random.default_rng(index)), index).mouth

    def clip(self, index: int) -> Clip:
        """Return the clip of a number. Raises IndexError, and InputError where the file cannot be read on."""
        video, number = self._find(index)
        num_frames = self.num_blocks * FRAMES_PER_BLOCK
        reading = self._open(video, number * num_frames)
        frames = reading.take(num_frames)
        first = number * num_frames * SAMPLES_PER_FRAME
        return Clip(
            frames_THWC=frames,
            wave_N=reading.wave[first : first + num_frames * SAMPLES_PER_FRAME],
            prompt=video.prompt,
            portrait_HWC=frames[0],
            face_boxes=_face_boxes(frames, self.side) if reading.has_face else {},
        )

    def close(self) -> None:
        """Close the file that was read last."""
        if self._reading is not None:
            self._reading.close()
        self._reading = None

    def _add(self, path: Path) -> None:
        try:
            video = _look_at(path, self.clip_s)
        except InputError as error:
            self.skipped[path] = str(error)
            _LOG.warning("%s; the video is skipped", error)
            return
        self._videos.append(video)

    def _find(self, index: int) -> tuple[_Video, int]:
        left = index
        for video in self._videos:
            if 0 <= left < video.num_clips:
                return video, left
            left -= video.num_clips
        raise IndexError(f"expected a clip from 0 to {len(self) - 1}, got {index}")

    def _open(self, video: _Video, frame: int) -> _Reading:
        """Return the video at a frame, read on where that is possible."""
        reading = self._reading
        if reading is None or reading.video is not video or reading.frame > frame:
            self.close()
            reading = self._reading = _Reading(video, self.side)
        reading.skip(frame - reading.frame)
        return reading


def _look_at(path: Path, clip_s: float) -> _Video:
    """Return what a file holds. Raises InputError where it cannot be used."""
    start_s, fps, has_sound = timing(path)
    if not has_sound:
        raise InputError(f"{path}: expected a video with sound, got one without")
    pictures = num_pictures(path)
    sound_s = len(_speech(path, start_s)) / SAMPLE_RATE
    duration_s = min(pictures / fps, sound_s)
    num_clips = int(duration_s / clip_s + 1e-6)
    if not num_clips:
        raise InputError(f"{path}: expected {clip_s:.2f} s or more, got {duration_s:.2f} s")
    beside = path.with_suffix(".txt")
    prompt = " ".join(read_text(beside).split()) if beside.is_file() else ""
    return _Video(path, prompt, fps, pictures, start_s, num_clips)


def _speech(path: Path, start_s: float) -> Wave:
    """Return the sound as mono at 16 kHz, from the first picture on."""
    wave, sound_start_s = read_speech(path)
    late = round((sound_start_s - start_s) * SAMPLE_RATE)
    return wave[-late:] if late <= 0 else np.concatenate([np.zeros(late, np.float32), wave])


def _square(picture: Frame) -> tuple[Square, bool]:
    """Return the part that is cut out (left, top, right, bottom), and whether it shows a face."""
    from PIL import Image

    found = face_square(Image.fromarray(picture)) if can_find_faces() else None
    if found is not None:
        return found, True
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side), False


def _face_boxes(frames: Frame, side: int) -> dict[str, tuple[int, int, int, int]]:
    points = face_points(list(frames[::_POINTS_EVERY]))
    return {} if points is None else boxes_of(points, side=side)
