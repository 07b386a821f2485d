"""What gives way, rung by rung, when memory runs out while a video is made.

Input: the plan in force and the rungs below it, decided beforehand. Called by the session with the error;
after it returns the failed call is made again. A rung that keeps the picture moves what is remembered and
loses nothing; one that changes it makes the session go on from its last finished block with another plan.
Every rung taken is logged and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from lipcast.engine.session import ReplanRequired, SessionParts
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.env import logger
from lipcast.errors import MemoryBudgetError
from lipcast.planning.fallbacks import FallbackPlan
from lipcast.planning.hardware import format_bytes
from lipcast.planning.plan import Plan

_log = logger("engine.ladder")


@dataclass(frozen=True, slots=True)
class FallbackTaken:
    """One fallback: what, at which block, and bytes on the device before and after."""

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
        """`move` brings a plan about that keeps the picture; `restart` makes what goes on otherwise."""
        self.plan = plan
        self.taken: list[FallbackTaken] = []
        self._left = list(fallbacks)
        self._move, self._restart, self._used_bytes = move, restart, used_bytes

    def __call__(self, error: torch.OutOfMemoryError, block: int) -> None:
        reason = str(error).splitlines()[0]
        before, used_before = self.plan, self._used_bytes()
        while self._left:
            found = self._left.pop(0)
            self.plan = found.plan
            if not found.fallback.keeps_the_picture:
                self._record(found, block, reason, before, used_before, None)
                raise ReplanRequired(partial(self._restart, found.plan))
            try:
                self._move(found.plan)
            except torch.OutOfMemoryError as next_error:
                reason = str(next_error).splitlines()[0]
                continue
            self._record(found, block, reason, before, used_before, self._used_bytes())
            return
        raise MemoryBudgetError(self._refusal(reason, block)) from error

    def document(self) -> dict[str, Any]:
        """The rungs taken and those that are left, as plain values."""
        left = [str(fallback.fallback) for fallback in self._left]
        return {"taken": [asdict(taken) for taken in self.taken], "left": left}

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
        tried = ", ".join(taken.fallback for taken in self.taken) or "nothing"
        return (
            f"out of memory at block {block} ({reason}); given way: {tried}, and nothing is left that may; "
            "give more memory, take a smaller --size or --infer_frames, or allow it with --allow_degrade"
        )
