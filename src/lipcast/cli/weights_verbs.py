"""The verbs about model files, registered: pull, models, convert, encode-prompt, doctor."""

from __future__ import annotations

import typer

from lipcast.cli.convert import CONVERT_FLAGS, convert
from lipcast.cli.doctor import DOCTOR_FLAGS, doctor
from lipcast.cli.encode_prompt import ENCODE_FLAGS, TEXT, encode_prompt
from lipcast.cli.models import MODELS_FLAGS, models
from lipcast.cli.options import either_spelling, with_flags
from lipcast.cli.pull import NAME, PULL_FLAGS, pull

WEIGHTS_FLAGS = (*PULL_FLAGS, *MODELS_FLAGS, *CONVERT_FLAGS, *ENCODE_FLAGS, *DOCTOR_FLAGS)


def register(app: typer.Typer) -> None:
    """Add the verbs to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    for name, command in (
        ("pull", with_flags(PULL_FLAGS, positional=NAME)(pull)),
        ("models", with_flags(MODELS_FLAGS)(models)),
        ("convert", with_flags(CONVERT_FLAGS)(convert)),
        ("encode-prompt", with_flags(ENCODE_FLAGS, positional=TEXT)(encode_prompt)),
        ("doctor", with_flags(DOCTOR_FLAGS)(doctor)),
    ):
        app.command(name, context_settings=context)(command)
