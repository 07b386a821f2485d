"""The entry point, and what becomes of an error in any command.

Input: the arguments. Output: an exit code; an error is one sentence on standard error, and with
--json one document on standard output. The commands are imported inside, so that an interrupt while
they load is handled like any other.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

Program = Callable[[Sequence[str]], int]
"""Runs one command; returns its exit code, or lets its error through."""


def _lipcast(arguments: Sequence[str]) -> int:
    from lipcast.cli.app import run_command

    return run_command(arguments)


def main(arguments: Sequence[str], program: Program = _lipcast) -> int:
    """Run one command and return its exit code; never raises."""
    try:
        return program(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _report(error, as_json="--json" in arguments)


def _report(error: BaseException, *, as_json: bool) -> int:
    """Print what went wrong in one sentence; returns the exit code."""
    from lipcast.cli.console import error_document, print_json, print_line
    from lipcast.cli.error_report import describe_error

    explanation = describe_error(error)
    print_line(explanation.sentence)
    if as_json:
        print_json(getattr(error, "document", None) or error_document(explanation))
    return explanation.exit_code


def run(program: Program = _lipcast) -> None:
    """Run the `lipcast` command of this process, or another program's."""
    from lipcast.cli.signals import ignore_interrupts, interrupt_on_termination
    from lipcast.cli.streams import open_streams

    interrupt_on_termination()
    open_streams()
    try:
        exit_code = main(sys.argv[1:], program)
    except KeyboardInterrupt:  # while an error was being reported
        exit_code = 130
    # The work is done; an interrupt while Python takes itself down would only print a traceback.
    ignore_interrupts()
    sys.exit(exit_code)
