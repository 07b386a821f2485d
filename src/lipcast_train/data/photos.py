"""Photographed people who speak: portraits of a folder, warped by the same drive as drawn people.

Input: a folder of pictures, one face in each, that the user has the right to use. Output: clips with
the truth of their mouths. Pictures without a face seen from the front are skipped with a warning. The face is
found by what lipcast[lab] installs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.face_detector import can_find_faces
from lipcast.media.image import fit_portrait, load_portrait
from lipcast_train.data.clips import Clip, Voice
from lipcast_train.data.drive import drive
from lipcast_train.data.landmarks import Points, boxes_of, face_points, turned, with_open_mouth
from lipcast_train.data.movement import at_rest
from lipcast_train.data.photo_warp import animate
from lipcast_train.data.procedural import Said, say
from lipcast_train.data.voices import Babble, Voices, Wave
from lipcast_train.data.words import Mood

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LOG = logger("train.photos")
_MAX_TURN = 0.2
_SHARPER = 2
"""The portrait is kept at so many times the side, so that warping it does not blur it."""


@dataclass(frozen=True, slots=True)
class _Portrait:
    path: Path
    picture_HWC: NDArray[np.uint8]
    points: Points


class PhotoClips:
    """A source of clips from a folder of portraits; `skipped` says which were left out, and why."""

    def __init__(
        self,
        folder: Path,
        num_clips: int,
        *,
        seed: int = 0,
        num_blocks: int = 8,
        side: int = 256,
        voices: Voices | None = None,
        augment: bool = True,
    ) -> None:
        """Find the face in every picture. Raises InputError without lipcast[lab], or without any face."""
        if not can_find_faces():
            raise InputError(
                "portraits: faces are found by a package that is missing; pip install lipcast[lab]"
            )
        self.seed, self.num_blocks, self.side = seed, num_blocks, side
        self._num_clips, self._voices, self._augment = num_clips, voices or Babble(), augment
        self.skipped: dict[Path, str] = {}
        self._portraits: list[_Portrait] = []
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES):
            self._add(path)
        if not self._portraits:
            raise InputError(
                f"{folder}: expected portraits (jpg, png, webp) with a face, found none that can be used "
                f"({len(self.skipped)} were skipped)"
            )

    def __len__(self) -> int:
        return self._num_clips

    def clip(self, index: int) -> Clip:
        """Return the clip of a number from 0 to the length. Raises IndexError."""
        said = self._said(index)
        return self.clip_of(index, said.clean_N, said.feeling, seed=said.seed, wave_N=said.heard_N)

    def voice(self, index: int) -> Voice:
        """Return the sound of a clip, and how the mouth moves that would be shown. Raises IndexError."""
        return self._said(index).voice()

    def _said(self, index: int) -> Said:
        return say(
            index, self._num_clips, self._voices,
            key=(self.seed, 6), num_blocks=self.num_blocks, augment=self._augment,
        )  # fmt: skip

    def clip_of(
        self, index: int, speech_N: Wave, feeling: Mood, *, seed: int, wave_N: Wave | None = None
    ) -> Clip:
        """Return a clip of a portrait that says something; `wave_N` is what is heard of the speech."""
        portrait = self._portraits[index % len(self._portraits)]
        movement = drive(speech_N, feeling, seed)
        frames = animate(portrait.picture_HWC, portrait.points, movement, side=self.side)
        resting = animate(portrait.picture_HWC, portrait.points, at_rest(), side=self.side)[0]
        points = portrait.points * (self.side / portrait.picture_HWC.shape[0])
        return Clip(
            frames_THWC=frames,
            wave_N=speech_N if wave_N is None else wave_N,
            prompt=feeling.prompt,
            portrait_HWC=resting,
            mouth=movement.mouth,
            face_boxes=boxes_of(np.stack([points, with_open_mouth(points)]), side=self.side),
        )

    def _add(self, path: Path) -> None:
        try:
            self._portraits.append(_look_at(path, _SHARPER * self.side))
        except InputError as error:
            self.skipped[path] = str(error)
            _LOG.warning("%s; the portrait is skipped", error)


def _look_at(path: Path, side: int) -> _Portrait:
    """Return a portrait cropped to its face, and the face's points. Raises InputError."""
    picture = fit_portrait(load_portrait(path, crop="face"), side, side)
    points = face_points([picture])
    if points is None:
        raise InputError(f"{path}: expected a face seen from the front, found none")
    if turned(points[0]) > _MAX_TURN:
        raise InputError(f"{path}: expected a face seen from the front, got one turned to the side")
    return _Portrait(path, picture, points[0])
