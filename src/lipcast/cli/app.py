"""The verbs of the command line, put together from the table of flags."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.main import get_command

import lipcast
from lipcast.cli import concat_split, evaluate, job, plan, report, weights_verbs
from lipcast.cli.bench import BENCH_FLAGS, bench
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.generate import generate
from lipcast.cli.info import INFO_FLAGS, info
from lipcast.cli.options import either_spelling, with_flags


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
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings=context,
    )
    app.callback()(_root)
    app.command(context_settings=context)(with_flags(FLAGS)(generate))
    app.command(context_settings=context)(with_flags(INFO_FLAGS)(info))
    app.command(context_settings=context)(with_flags(BENCH_FLAGS)(bench))
    plan.register(app)
    evaluate.register(app)
    report.register(app)
    concat_split.register(app)
    job.register(app)
    weights_verbs.register(app)
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; its exit code, or whatever it raises."""
    command = get_command(make_app())
    result = command.main(list(arguments), prog_name="lipcast", standalone_mode=False)
    return result if isinstance(result, int) else 0
