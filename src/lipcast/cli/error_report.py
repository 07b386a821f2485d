"""Any error as a kind, one sentence and an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lipcast.errors import CancelledError, LipcastError, MemoryBudgetError, UsageError

_INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a defect of the program, not of the request."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Text that the user sees of an error."""

    kind: str
    sentence: str
    exit_code: int

    @property
    def was_interrupted(self) -> bool:
        return self.exit_code == CancelledError.exit_code


def describe_error(error: BaseException) -> Explanation:
    """Return the explanation of any error; an unexpected one is called a defect."""
    if isinstance(error, LipcastError):
        return Explanation(type(error).__name__, str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Explanation(CancelledError.__name__, "stopped", CancelledError.exit_code)
    if isinstance(error, MemoryError):
        sentence = "out of memory. Lower --size or --infer_frames, or close other programs."
        return Explanation(MemoryBudgetError.__name__, sentence, MemoryBudgetError.exit_code)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return Explanation(UsageError.__name__, _parser_sentence(error), int(error.exit_code))
    if isinstance(error, OSError) and error.filename is not None:
        sentence = (
            f"{error.filename}: {error.strerror}. Check the path, its permissions and the disk."
        )
        return Explanation(LipcastError.__name__, sentence, LipcastError.exit_code)
    name = type(error).__name__
    first_line = (str(error).splitlines() or ["no message"])[0]
    sentence = f"unexpected {name}: {first_line}. This is a defect; run again with --debug."
    return Explanation(name, sentence, _INTERNAL_ERROR)


def _parser_sentence(error: Any) -> str:
    """Return what click says of a wrong command line, and where to read on."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "lipcast"
    message = " ".join(error.format_message().split())
    return f"{message} See `{command} --help`."
