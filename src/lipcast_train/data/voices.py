"""Where the sound of drawn clips comes from: recordings in a folder, or babble.

Input: a seed. Output: mono samples at 16 kHz. Recordings that cannot be read are left out, with a warning.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE
from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.audio import read_speech
from lipcast_train.data.augment import recorded, retimed
from lipcast_train.data.babble import babble

Wave = NDArray[np.float32]
SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus"})
_LOG = logger("train.voices")
_PAUSE_S = 0.25, 0.9


class Voices(Protocol):
    """Gives speech by number; the same number always gives the same samples."""

    def speech(self, num_samples: int, seed: int) -> Wave: ...


class Babble:
    """Speech-like sound for where no voice is at hand."""

    def speech(self, num_samples: int, seed: int) -> Wave:
        """Return so many samples of a voice that the seed decides."""
        return babble(num_samples, seed)


class FolderVoices:
    """Recordings or synthesised speech, one utterance of one speaker in each file."""

    def __init__(self, folder: Path) -> None:
        """Find the sounds in a folder and its subfolders. Raises InputError where there is none."""
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SOUND_SUFFIXES)
        self.files = [path for path in found if _is_usable(path)]
        if not self.files:
            raise InputError(
                f"{folder}: expected sound files (wav, flac, mp3, m4a, ogg, opus), found none that can "
                "be read; make some with lipcast_train.data.speech, or leave voices out to use babble"
            )

    def speech(self, num_samples: int, seed: int) -> Wave:
        """Return utterances of one folder, with pauses between, from somewhere within the first."""
        rng = np.random.default_rng((seed, 4))
        first = int(rng.integers(len(self.files)))
        speaker = [path for path in self.files if path.parent == self.files[first].parent]
        wave = read_wave(self.files[first])
        start = int(rng.integers(max(1, len(wave) - num_samples // 2)))
        parts = [wave[start:]]
        while sum(map(len, parts)) < num_samples:
            pause = np.zeros(int(rng.uniform(*_PAUSE_S) * SAMPLE_RATE), np.float32)
            parts += [pause, read_wave(speaker[int(rng.integers(len(speaker)))])]
        return np.concatenate(parts)[:num_samples]


def spoken(
    voices: Voices, num_samples: int, seed: int, *, rng: np.random.Generator | None
) -> tuple[Wave, Wave]:
    """Return the speech that a mouth follows, and the recording of it that is heard.

    With `rng` the speech is spoken at another speed and recorded in another room; without, both are the same.
    """
    if rng is None:
        speech = voices.speech(num_samples, seed)
        return speech, speech
    # A fifth more, for speech that is spoken faster.
    speech = retimed(voices.speech(num_samples * 6 // 5, seed), num_samples, rng)
    return speech, recorded(speech, rng)


@lru_cache(maxsize=64)
def read_wave(path: Path) -> Wave:
    """Return a sound file as mono samples at 16 kHz. Raises InputError."""
    return read_speech(path)[0]


def _is_usable(path: Path) -> bool:
    try:
        return bool(len(read_wave(path)))
    except InputError as error:
        _LOG.warning("%s; the recording is left out", error)
        return False
