"""Drawn people who speak: a clip for every number, with the truth of its mouth.

Every clip shows another person. The sound is cut, the movement follows from it, and the portrait is the
person at rest, so that the prompt alone says which expression comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from lipcast.config.models import DiTConfig
from lipcast_train.data.clips import Clip, Voice
from lipcast_train.data.drawing.person import Person, Variety, person
from lipcast_train.data.drawing.portrait import draw, face_boxes
from lipcast_train.data.drive import drive
from lipcast_train.data.hearing import SAMPLES_PER_FRAME
from lipcast_train.data.movement import at_rest
from lipcast_train.data.voices import Babble, Voices, Wave, spoken
from lipcast_train.data.words import Mood, mood

FRAMES_PER_BLOCK = DiTConfig().video_frames_per_block
"""Video frames of a block of every model of the family."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the person of a clip says, and how."""

    feeling: Mood
    seed: int
    """Of the movement."""
    clean_N: Wave
    """What moves the mouth."""
    heard_N: Wave
    """The same as it was recorded."""

    def voice(self) -> Voice:
        """Return the sound that is heard, and how the mouth moves."""
        return self.heard_N, drive(self.clean_N, self.feeling, self.seed).mouth


def say(
    index: int,
    num_clips: int,
    voices: Voices,
    *,
    key: tuple[int, int],
    num_blocks: int,
    augment: bool,
) -> Said:
    """Return what is said in a clip; `key` tells sources apart. Raises IndexError."""
    if not 0 <= index < num_clips:
        raise IndexError(f"expected a clip from 0 to {num_clips - 1}, got {index}")
    seed, kind = key
    rng = np.random.default_rng((seed, index, kind))
    feeling, number = mood(rng), int(rng.integers(2**31))
    num_samples = num_blocks * FRAMES_PER_BLOCK * SAMPLES_PER_FRAME
    clean_N, heard_N = spoken(voices, num_samples, number, rng=rng if augment else None)
    return Said(feeling, number, clean_N, heard_N)


@dataclass(frozen=True)
class ProceduralClips:
    """A source of clips that are drawn when they are asked for."""

    num_clips: int
    seed: int = 0
    num_blocks: int = 8
    side: int = 256
    voices: Voices = field(default_factory=Babble)
    variety: Variety = field(default_factory=Variety)
    augment: bool = True
    """Record the speech in other rooms, at other speeds and levels."""
    num_people: int | None = None
    """Clips of this many identities; None: every clip has its own."""
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> Clip:
        """Return the clip of a number from 0 to the length. Raises IndexError."""
        said = self._said(index)
        who = self.person(index)
        return self.clip_of(who, said.clean_N, said.feeling, seed=said.seed, wave_N=said.heard_N)

    def voice(self, index: int) -> Voice:
        """Return the sound of a clip, and how the mouth moves that would be drawn. Raises IndexError."""
        return self._said(index).voice()

    def _said(self, index: int) -> Said:
        return say(
            index, self.num_clips, self.voices,
            key=(self.seed, 5), num_blocks=self.num_blocks, augment=self.augment,
        )  # fmt: skip

    def clip_of(
        self, who: Person, speech_N: Wave, feeling: Mood, *, seed: int, wave_N: Wave | None = None
    ) -> Clip:
        """Return a clip of a person who says something; `wave_N` is what is heard of the speech."""
        movement = drive(speech_N, feeling, seed)
        return Clip(
            frames_THWC=draw(who, movement, side=self.side, device=self.device),
            wave_N=speech_N if wave_N is None else wave_N,
            prompt=feeling.prompt,
            portrait_HWC=draw(who, at_rest(), side=self.side, device=self.device)[0],
            mouth=movement.mouth,
            face_boxes=face_boxes(who, movement, side=self.side),
        )

    def person(self, index: int) -> Person:
        """Return who is shown in a clip."""
        return person(self.seed, index % (self.num_people or self.num_clips), self.variety)
