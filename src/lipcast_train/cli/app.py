"""The `lipcast-train` command with its subcommands."""

from __future__ import annotations

from collections.abc import Sequence

from lipcast.cli.command import Command, Group
from lipcast_train.cli.all import gates, report, train
from lipcast_train.cli.lora import lora

_HELP = """Train a model of the Live Avatar family.

\b
Train every network, small:
  lipcast-train all --preset smoke -o out/smoke
  lipcast generate --model out/smoke/model --image me.png --audio hello.wav -o out.mp4

\b
Train an adapter of a model on videos of one person:
  lipcast-train lora --data clips/ --model tiny --out style.safetensors
"""
SUBCOMMANDS: tuple[Command, ...] = (train, lora, report, gates)


def make_app() -> Group:
    """Return the command with all its subcommands."""
    app = Group("lipcast-train", help=_HELP)
    for subcommand in SUBCOMMANDS:
        app.add_command(subcommand)
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code, or lets its error through."""
    result = make_app().main(list(arguments), prog_name="lipcast-train", standalone_mode=False)
    return result if isinstance(result, int) else 0
