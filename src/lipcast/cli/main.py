"""The entry point, and what becomes of an error in any verb.

Input: the arguments. Output: an exit code; an error is one sentence on standard error, and with
--json one document on standard output. The verbs are imported inside, so that an interrupt while
they load is handled like any other.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence

from lipcast.errors import CancelledError, LipcastError, MemoryBudgetError

_INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a defect of the program, not of the request."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises."""
    try:
        from lipcast.cli.app import run_command

        return run_command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _report(error, as_json="--json" in arguments)


def _report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong in one sentence; returns the exit code."""
    from lipcast.cli.talk import describe_error, print_json, say

    kind, sentence, exit_code = _explain(error)
    say(sentence)
    if as_json:
        document = getattr(error, "document", None)
        print_json(document or describe_error(kind, sentence, exit_code))
    return exit_code


def _explain(error: BaseException) -> tuple[str, str, int]:
    """(kind, sentence, exit code) of any error."""
    if isinstance(error, LipcastError):
        return type(error).__name__, str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return CancelledError.__name__, "stopped", CancelledError.exit_code
    if isinstance(error, MemoryError):
        advice = "memory ran out; choose a smaller --size or --infer_frames"
        return MemoryBudgetError.__name__, advice, MemoryBudgetError.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        # The parser's own errors: an unknown flag, a value that is missing.
        return "UsageError", f"{error.format_message()} (see lipcast --help)", int(error.exit_code)
    name = type(error).__name__
    sentence = f"unexpected {name}: {_first_line(error)}; this is a defect, run with --debug"
    return name, sentence, _INTERNAL_ERROR


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def run() -> None:
    """The `lipcast` command."""
    exit_code = main(sys.argv[1:])
    # The work is done; an interrupt while Python takes itself down would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(exit_code)
