"""Any error as a kind, one sentence and an exit code."""

from __future__ import annotations

from dataclasses import dataclass

from lipcast.errors import CancelledError, LipcastError, MemoryBudgetError, UsageError

_INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a defect of the program, not of the request."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the user is told of an error."""

    kind: str
    sentence: str
    exit_code: int

    @property
    def was_interrupted(self) -> bool:
        return self.exit_code == CancelledError.exit_code


def describe_error(error: BaseException) -> Explanation:
    """Every error has an explanation; an unexpected one says that it is a defect."""
    if isinstance(error, LipcastError):
        return Explanation(type(error).__name__, str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Explanation(CancelledError.__name__, "stopped", CancelledError.exit_code)
    if isinstance(error, MemoryError):
        sentence = "memory ran out; choose a smaller --size or --infer_frames"
        return Explanation(MemoryBudgetError.__name__, sentence, MemoryBudgetError.exit_code)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        # The parser's own errors: an unknown flag, a value that is missing.
        sentence = f"{error.format_message()} (see lipcast --help)"
        return Explanation(UsageError.__name__, sentence, int(error.exit_code))
    name = type(error).__name__
    first_line = (str(error).splitlines() or ["no message"])[0]
    sentence = f"unexpected {name}: {first_line}; this is a defect, run with --debug"
    return Explanation(name, sentence, _INTERNAL_ERROR)
