"""Advances the live sessions of one model: one thread, one tick for all sessions that are ready.

Input: sessions that join. Output: none; their frames become ready. The thread starts with the first session
and ends when none is left. A session that is dropped without `close` is forgotten.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

from lipcast.engine.live import LiveSession
from lipcast.engine.session import Session
from lipcast.env import logger

_log = logger("engine.live_runner")
_LOOK_AGAIN_S = 0.1
"""How often to look where nothing has changed: an utterance may end for want of sound."""


class LiveRunner:
    """One per model. Use `step` to advance the sessions from a thread of your own."""

    def __init__(self, tick: Callable[[Sequence[Session]], bool], *, threaded: bool = True) -> None:
        """`tick` advances sessions together, and returns whether any had something to do."""
        self._tick, self._threaded = tick, threaded
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._sessions: list[weakref.ref[LiveSession]] = []
        self._thread: threading.Thread | None = None

    def add(self, session: LiveSession) -> None:
        """Advance a session from now on, until it has ended."""
        session.wake_runner = self._woken.set
        with self._lock:
            self._sessions.append(weakref.ref(session))
            if self._threaded and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lipcast-live", daemon=True)
                self._thread.start()
        self._woken.set()

    def step(self) -> bool:
        """Advance all sessions by a tick; False where none had anything to do."""
        sessions = self._open_sessions()
        ready = [session.inner for session in sessions if session.wants_tick()]
        is_busy = False
        try:
            is_busy = bool(ready) and self._tick(ready)
        except Exception as error:
            _log.exception("the live sessions cannot be advanced")
            for session in sessions:
                session.fail(error)
        for session in sessions:
            session.collect()
        return is_busy

    def _open_sessions(self) -> list[LiveSession]:
        with self._lock:
            found = [
                session for session in (ref() for ref in self._sessions) if session is not None
            ]
            found = [session for session in found if not session.has_ended]
            self._sessions = [weakref.ref(session) for session in found]
            return found

    def _run(self) -> None:
        while True:
            self._woken.clear()
            if self.step():
                continue
            with self._lock:
                if not self._sessions:
                    self._thread = None
                    return
            self._woken.wait(_LOOK_AGAIN_S)
