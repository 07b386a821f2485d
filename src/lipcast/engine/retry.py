"""Retry a call that ran out of memory, after memory has been freed.

Input: a call, and a recovery that frees memory. Output: what the call returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from lipcast.memory.oom import is_out_of_memory

_Result = TypeVar("_Result")


class Recovery(Protocol):
    """Frees memory when it runs out."""

    def __call__(self, reason: str, block: int) -> None:
        """Return when the failed call can be repeated; raise ReplanRequired to continue with new parts.

        `block` is the first unfinished one. Raises MemoryBudgetError where nothing is left to do.
        """


def retry_on_oom(call: Callable[[], _Result], recovery: Recovery | None, block: int = 0) -> _Result:
    """Retry `call` after out-of-memory errors of any kind while `recovery` can free memory.

    The recovery runs after the error is released: its traceback holds the tensors of the failed call.
    """
    while True:
        try:
            return call()
        except Exception as error:
            if recovery is None or not is_out_of_memory(error):
                raise
            reason = first_line(error)
        recovery(reason, block)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)
