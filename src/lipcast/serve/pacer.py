"""When to send: media may run ahead of the clock by so much, and no more.

What a client has buffered is what an interruption has to throw away, and what speech has to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEAD_IDLE_S, LEAD_SPEECH_S = 0.35, 1.0
"""How much of what was sent may be left to play when more is sent."""


class Pacer:
    """The clock of one connection, which plays what it gets at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plays_until = clock()

    @property
    def ahead_s(self) -> float:
        """Seconds that were sent and have not been played."""
        return max(0.0, self._plays_until - self._clock())

    def sent(self, seconds: float) -> None:
        """So much was sent; a client that had nothing left begins to play it now."""
        self._plays_until = max(self._plays_until, self._clock()) + seconds

    def cut(self) -> None:
        """The client throws away what it has not played."""
        self._plays_until = self._clock()
