"""Tells speech from quiet in a microphone's sound, which never pauses.

Input: pieces of about 20 ms. Output: the pieces that belong to an utterance, and where it ends. An utterance
begins with 60 ms louder than the room, the 0.3 s before them included, and ends after 0.8 s of quiet.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

_LOUD_PIECES, _QUIET_PIECES, _PIECES_BEFORE = 3, 40, 15
_LEAST_LEVEL, _OVER_ROOM = 0.01, 3.5
_ROOM_START, _ROOM_MOST, _ROOM_GROWTH = 0.004, 0.03, 1.002


class VoiceGate:
    """Follows one microphone."""

    def __init__(self) -> None:
        self.is_speaking = False
        self._room = _ROOM_START
        self._num_loud = self._num_quiet = 0
        self._before: deque[NDArray[np.int16]] = deque(maxlen=_PIECES_BEFORE)

    def take(self, piece: NDArray[np.int16]) -> tuple[list[NDArray[np.int16]], bool]:
        """Return the pieces that are spoken now, and whether the utterance ends with them."""
        is_loud = self._is_loud(piece)
        self._num_loud = self._num_loud + 1 if is_loud else 0
        self._num_quiet = 0 if is_loud else self._num_quiet + 1
        if self.is_speaking:
            self.is_speaking = self._num_quiet <= _QUIET_PIECES
            return [piece], not self.is_speaking
        self._before.append(piece)
        if self._num_loud < _LOUD_PIECES:
            return [], False
        begun, self.is_speaking = list(self._before), True
        self._before.clear()
        return begun, False

    def _is_loud(self, piece: NDArray[np.int16]) -> bool:
        level = float(np.sqrt(np.mean(np.square(piece, dtype=np.float64)))) / 32_768
        # The room is as loud as its quietest moment, which is forgotten within a minute.
        slowly = min(_ROOM_MOST, self._room * _ROOM_GROWTH)
        self._room = max(level, 1e-6) if level < self._room else slowly
        return level > max(_LEAST_LEVEL, _OVER_ROOM * self._room)
