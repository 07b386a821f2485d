"""Waiting for the frames of a live session in an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live_by_hand import Live

from fake_live import BLOCK
from lipcast.errors import SessionFailedError


@pytest.fixture
def live(tiny) -> Live:
    return Live(tiny)


def test_frames_in_an_event_loop(live):
    async def scenario() -> tuple[int, bool]:
        taking = asyncio.create_task(live.session.next_frames(100))
        await asyncio.sleep(0)
        assert not taking.done()
        live.run()
        found = await asyncio.wait_for(taking, 5)
        live.session.close()
        return len(found), [frame async for frame in live.session] == []

    assert asyncio.run(scenario()) == (BLOCK, True)


def test_waiting_for_frames_wakes_nobody(tiny):
    live, woken = Live(tiny, idle=False), []
    live.session.wake_runner = lambda: woken.append(None)

    async def scenario() -> None:
        taking = asyncio.create_task(live.session.next_frames())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not taking.done()
        taking.cancel()

    asyncio.run(scenario())
    assert woken == []


class Turnstile:
    """A lock that does something once, when it has been left for the n-th time."""

    def __init__(self, lock: Any, act: Any, *, after: int) -> None:
        self._lock, self._act, self._left = lock, act, after

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)
        self._left -= 1
        if self._left == 0:
            self._act()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


@pytest.mark.parametrize("moment", range(1, 4))
def test_a_failure_while_somebody_begins_to_wait_is_not_lost(live, moment):
    session, error = live.session, SessionFailedError("the session has failed: lost")
    session._changed = Turnstile(session._changed, lambda: session.fail(error), after=moment)

    async def scenario() -> None:
        async with asyncio.timeout(60):
            taking = asyncio.create_task(session.next_frames())
            await asyncio.sleep(0)
            session.resume()  # leaves the lock again, for the later moments
            await taking

    with pytest.raises(SessionFailedError, match="lost"):
        asyncio.run(scenario())
