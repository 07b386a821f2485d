"""Runs the ticks of several sessions of one model together.

Input: sessions that are open. Output: none; their blocks become ready. One pass of the transformer carries
the lanes of every session that has something to compute, so weights are read once for all of them.
Invariants: a session's latents are those it would have alone (in NVFP4 within that format's rounding: one
scale is shared by all lanes of a pass); each session with a tick gets it in every call;
an error in one session ends that session only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from lipcast.config.schedule import Tick
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.session import Session, SessionState
from lipcast.env import logger
from lipcast.models.dit import DiT

_log = logger("engine.engine")


@dataclass(frozen=True, slots=True)
class _Work:
    """One session's tick, its blocks ready to be computed."""

    session: Session
    executor: LaneExecutor
    tick: Tick

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens per frame and number of characters, which lanes of one pass share."""
        return self.session.spec.geometry.tokens_per_frame, self.executor.num_characters


class Engine:
    """Runs lanes of several sessions in one pass of `model`."""

    def __init__(self, model: DiT, *, max_lanes: int | None = None) -> None:
        """`max_lanes` bounds the lanes of one pass; more sessions then take several passes a tick."""
        assert max_lanes is None or max_lanes >= 1
        self._model, self._max_lanes = model, max_lanes

    def tick(self, sessions: Sequence[Session]) -> bool:
        """Run one tick of every open session that has sound for it; return False if there was none.

        A session whose tick fails is ended: taking its blocks raises SessionFailedError.
        """
        together: list[_Work] = []
        is_busy = False
        for session in sessions:
            if session.state is not SessionState.OPEN:
                continue
            work = self._begin(session)
            if isinstance(work, _Work):
                together.append(work)
            is_busy = is_busy or bool(work)
        for group in self._passes(together):
            self._run(group)
        return is_busy

    def _begin(self, session: Session) -> _Work | bool:
        """Return work that can share a pass, else whether the session made progress."""
        try:
            collected = session.collect(wait=False)
            executor = session.executor
            tick = session.begin_tick()
            if not tick:
                replanned = executor is not session.executor
                return session.collect(wait=True) or collected or replanned
            if not isinstance(executor, LaneExecutor) or executor is not session.executor:
                session.run_tick(tick)
                return True
        except Exception as error:
            _note(session, error)
            return True
        return _Work(session, executor, tick)

    def _passes(self, together: Iterable[_Work]) -> Iterable[list[_Work]]:
        """Group ticks of one shape into passes of at most `max_lanes`."""
        ordered = sorted(together, key=lambda work: work.shape)
        for _, same_size in groupby(ordered, key=lambda work: work.shape):
            group: list[_Work] = []
            for work in same_size:
                lanes = sum(len(other.tick) for other in (*group, work))
                if group and self._max_lanes is not None and lanes > self._max_lanes:
                    yield group
                    group = []
                group.append(work)
            if group:
                yield group

    def _run(self, group: Sequence[_Work]) -> None:
        """Compute a pass; if it fails, run each session alone, so that only the faulty one fails."""
        velocities = self._compute(group) if len(group) > 1 else None
        first = 0
        for work in group:
            count = len(work.tick)
            try:
                if velocities is None:
                    work.session.run_tick(work.tick)
                else:
                    own = velocities[first : first + count]
                    finished = work.executor.finish(work.tick, own)
                    work.session.finish_tick(work.tick, finished)
            except Exception as error:
                _note(work.session, error)
            first += count

    def _compute(self, group: Sequence[_Work]) -> list[torch.Tensor] | None:
        try:
            with group[0].session.device_lock, torch.inference_mode():
                lanes = [lane for work in group for lane in work.executor.lanes(work.tick)]
                return list(self._model(lanes))
        except Exception as error:
            _log.warning("a pass of %d sessions failed (%s); each runs alone", len(group), error)
            return None


def _note(session: Session, error: Exception) -> None:
    """End a session because of its own error."""
    if session.state is SessionState.CLOSED:
        return  # somebody has closed it meanwhile
    session.fail(error)
    _log.warning("a session has failed: %s", error)
