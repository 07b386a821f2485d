"""The command line: the verbs, and what every one of them does with an error.

Input: the arguments. Output: an exit code; an error is one sentence on standard error, and with
--json one document on standard output. Nothing here or in the modules imported here loads torch,
so that help comes at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer
from typer.main import get_command

import lipcast
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.generate import generate
from lipcast.cli.info import info
from lipcast.cli.options import either_spelling, with_flags
from lipcast.cli.talk import describe_error, print_json
from lipcast.errors import CancelledError, LipcastError

_INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a defect of the program, not of the request."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipcast {lipcast.__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """A portrait, a voice and a prompt become a talking video.

    Try it with the model that comes along:

        lipcast generate --image me.png --audio hello.wav -o out.mp4
    """
    assert not version, "its callback ends the command"


def make_app() -> typer.Typer:
    """The application with all its verbs."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT,
    )
    app.callback()(_root)
    app.command(context_settings=_CONTEXT)(with_flags(FLAGS)(generate))
    app.command(context_settings=_CONTEXT)(info)
    return app


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises."""
    try:
        command = get_command(make_app())
        result = command.main(list(arguments), prog_name="lipcast", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _report(error, as_json="--json" in arguments)


def _report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong in one sentence; returns the exit code."""
    kind, sentence, exit_code = _explain(error)
    typer.echo(f"lipcast: {sentence}", err=True)
    if as_json:
        document = getattr(error, "document", None)
        print_json(document or describe_error(kind, sentence, exit_code))
    return exit_code


def _explain(error: BaseException) -> tuple[str, str, int]:
    """(kind, sentence, exit code) of any error."""
    if isinstance(error, LipcastError):
        return type(error).__name__, str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "Interrupted", "stopped; nothing was written", CancelledError.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        # The parser's own errors: an unknown flag, a value that is missing.
        return "UsageError", f"{error.format_message()} (lipcast --help)", int(error.exit_code)
    if isinstance(error, MemoryError):
        advice = "memory ran out; choose a smaller --size or --infer_frames"
        return "MemoryBudgetError", advice, 5
    name = type(error).__name__
    sentence = f"unexpected {name}: {_first_line(error)}; this is a defect, run with --debug"
    return name, sentence, _INTERNAL_ERROR


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def run() -> None:
    """The entry point of the `lipcast` command."""
    sys.exit(main(sys.argv[1:]))
