"""How much of a loop's time is waiting for what it loops over. Input: things. Output: the same; seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Thing = TypeVar("_Thing")


class WaitingClock:
    """Adds up the seconds between asking for a thing and getting it."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def watch(self, things: Iterable[_Thing]) -> Iterator[_Thing]:
        """Pass things on; the time spent waiting for them is not their user's."""
        began_s = time.perf_counter()
        for thing in things:
            self.waited_s += time.perf_counter() - began_s
            yield thing
            began_s = time.perf_counter()
