"""The `lipcast` command: all its subcommands, and shell completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

import lipcast
from lipcast.cli.bench import bench
from lipcast.cli.command import Group
from lipcast.cli.concat_split import concat, split_audio
from lipcast.cli.convert import convert
from lipcast.cli.doctor import doctor
from lipcast.cli.encode_prompt import encode_prompt
from lipcast.cli.evaluate import evaluate
from lipcast.cli.generate import generate
from lipcast.cli.info import info
from lipcast.cli.job import job
from lipcast.cli.models import models
from lipcast.cli.plan import plan
from lipcast.cli.pull import pull
from lipcast.cli.report import report
from lipcast.cli.serve import serve

_HELP = """Make a video of a portrait that speaks, from a picture, a voice and a prompt.

\b
Try it with the included model:
  lipcast generate --image me.png --audio hello.wav -o out.mp4
"""
_COMPLETE = "_LIPCAST_COMPLETE"
_SHELLS = {
    "bash": f'eval "$({_COMPLETE}=bash_source lipcast)"',
    "zsh": f'eval "$({_COMPLETE}=zsh_source lipcast)"',
    "fish": f"{_COMPLETE}=fish_source lipcast | source",
}


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"lipcast {lipcast.__version__}")
        ctx.exit()


def _print_completion(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    if shell is not None:
        click.echo(_SHELLS[shell])
        ctx.exit()


def make_app() -> Group:
    """Return the command with all its subcommands."""
    eager: dict[str, Any] = {"is_eager": True, "expose_value": False}
    app = Group(
        "lipcast",
        help=_HELP,
        params=[
            click.Option(
                ["--version"], is_flag=True, callback=_print_version, help="Show the version.", **eager
            ),
            click.Option(
                ["--show-completion"], type=click.Choice(list(_SHELLS)), callback=_print_completion,
                help="Print the line that turns on completion, for the start-up file of your shell.",
                **eager,
            ),
        ],
    )  # fmt: skip
    for subcommand in (
        generate, serve, job, plan, info, doctor, pull, models, convert, encode_prompt,
        concat, split_audio, bench, evaluate, report,
    ):  # fmt: skip
        app.add_command(subcommand)
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code, or lets its error through."""
    result = make_app().main(
        list(arguments), prog_name="lipcast", complete_var=_COMPLETE, standalone_mode=False
    )
    return result if isinstance(result, int) else 0
