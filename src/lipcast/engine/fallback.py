"""The ladder of fallbacks: taken one at a time when memory runs out during a video.

Input: the plan in force and the fallbacks below it, decided beforehand. Called by the session with the
reason; after it returns, the failed call is repeated. A fallback that keeps the picture moves what is in
memory and loses nothing; one that changes it makes the session go on from its last finished block with
another plan. Every fallback taken is logged and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lipcast.config.units import format_bytes
from lipcast.engine.retry import first_line
from lipcast.engine.session import ReplanRequired, SessionParts
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.env import logger
from lipcast.errors import MemoryBudgetError
from lipcast.memory.oom import is_out_of_memory
from lipcast.planning.fallbacks import FallbackPlan
from lipcast.planning.plan import Plan

_log = logger("engine.fallback")


@dataclass(frozen=True, slots=True)
class FallbackTaken:
    """A fallback that was taken: its name, the block, and device bytes before and after."""

    fallback: str
    block: int
    """The first unfinished block."""
    reason: str
    predicted_before_bytes: int
    predicted_after_bytes: int
    used_before_bytes: int
    used_after_bytes: int | None
    """None where the video went on with other settings: everything was made anew."""


class Ladder:
    """The session's recovery."""

    def __init__(
        self,
        plan: Plan,
        fallbacks: Sequence[FallbackPlan],
        *,
        move: Callable[[Plan], None],
        restart: Callable[[Plan, SessionSnapshot | None], SessionParts],
        used_bytes: Callable[[], int],
    ) -> None:
        """`move` applies a plan that keeps the picture; `restart` builds the parts for one that does not."""
        self.plan = plan
        self.taken: list[FallbackTaken] = []
        self._left = list(fallbacks)
        self._move, self._restart, self._used_bytes = move, restart, used_bytes

    def __call__(self, reason: str, block: int) -> None:
        """Take the next fallback that can be taken; see `engine.retry.Recovery`."""
        before, used_before = self.plan, self._used_bytes()
        while self._left:
            found = self._left.pop(0)
            if not found.fallback.keeps_the_picture:
                self.plan = found.plan
                self._record(found, block, reason, before, used_before, None)
                raise ReplanRequired(partial(self._restart, found.plan))
            refusal = self._try(found.plan)
            if refusal is not None:
                reason = refusal
                continue
            self.plan = found.plan
            self._record(found, block, reason, before, used_before, self._used_bytes())
            return
        raise MemoryBudgetError(self._refusal(reason, block))

    def document(self) -> dict[str, Any]:
        """Return the fallbacks taken and those that are left, as plain values."""
        left = [str(fallback.fallback) for fallback in self._left]
        return {"taken": [asdict(taken) for taken in self.taken], "left": left}

    def _try(self, plan: Plan) -> str | None:
        """Move to a plan; return why there was no memory for it, or None."""
        try:
            self._move(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)
        return None

    def _record(
        self,
        found: FallbackPlan,
        block: int,
        reason: str,
        before: Plan,
        used_before: int,
        used_after: int | None,
    ) -> None:
        taken = FallbackTaken(
            fallback=str(found.fallback),
            block=block,
            reason=reason,
            predicted_before_bytes=before.generate_bytes,
            predicted_after_bytes=found.plan.generate_bytes,
            used_before_bytes=used_before,
            used_after_bytes=used_after,
        )
        self.taken.append(taken)
        _log.warning(
            "out of memory at block %d (%s): %s, from %s to %s",
            block,
            reason,
            taken.fallback,
            format_bytes(before.generate_bytes),
            format_bytes(found.plan.generate_bytes),
        )

    def _refusal(self, reason: str, block: int) -> str:
        tried = ", ".join(taken.fallback for taken in self.taken) or "none"
        return (
            f"out of memory at block {block} ({reason}); no fallback left (tried: {tried}). "
            "Free GPU memory, lower --size or --infer_frames, or pass --allow_degrade"
        )
