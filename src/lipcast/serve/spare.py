"""A session that is opened before it is asked for, so that it begins at once.

Opening a session encodes the portrait, primes the decoder and makes a first block: seconds on a CPU. Input:
what the next session will probably begin with. Output: a paused session with its first pictures, for whoever
asks for exactly that. At most one is kept and one is being opened; what nobody wants any more is closed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from lipcast.engine.live import LiveSession
from lipcast.errors import LipcastError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a session begins with."""

    portrait: str
    prompt: str = ""
    seed: int | None = None


class Spare:
    """The session that is kept ready. Belongs to one event loop."""

    def __init__(self, open_session: Callable[[Wanted], LiveSession]) -> None:
        """`open_session` is called in a thread."""
        self._open = open_session
        self._wanted: Wanted | None = None
        self._kept: tuple[Wanted, LiveSession] | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a session is kept."""
        return self._kept is not None

    def keep(self, wanted: Wanted, live: LiveSession) -> None:
        """Keep a session that somebody else has opened and paused."""
        self._wanted, self._kept = wanted, (wanted, live)

    def want(self, wanted: Wanted) -> None:
        """Open a session for `wanted`; a later call replaces an earlier one."""
        self._wanted = wanted
        self._begin()

    def drop(self) -> None:
        """Close the session that is kept: others need its memory."""
        self._wanted = None
        self._begin()

    async def take(self, wanted: Wanted) -> LiveSession | None:
        """Return the session for `wanted`, or None; another one is closed, so that its memory is free."""
        if self._wanted == wanted:
            await self.settle()
        else:
            self._wanted = None
        kept, self._kept, self._wanted = self._kept, None, None
        if kept is not None and kept[0] == wanted and not kept[1].has_ended:
            return kept[1]
        if kept is not None:
            await asyncio.to_thread(kept[1].close)
        return None

    async def settle(self) -> None:
        """Wait until nothing is being opened."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def stop(self) -> None:
        """Close everything."""
        self._wanted = None
        await self.settle()
        await self._close_kept()

    def _begin(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _close_kept(self) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            await asyncio.to_thread(kept[1].close)

    async def _work(self) -> None:
        """Close what is kept for others, and open what is wanted."""
        while True:
            wanted = self._wanted
            if self._kept is not None and (self._kept[0] != wanted or self._kept[1].has_ended):
                await self._close_kept()
                continue
            if wanted is None or self._kept is not None:
                return
            try:
                self._kept = wanted, await asyncio.to_thread(self._open, wanted)
            except LipcastError:  # whoever asks for the session is told why
                self._wanted = None if self._wanted == wanted else self._wanted


def wait_for_pictures(live: LiveSession) -> None:
    """Wait until the first pictures of a session are ready, without taking them."""
    woken = threading.Event()
    with live.listening(woken.set):
        while live.next_kind() is None and not live.has_ended:
            woken.wait()
            woken.clear()
