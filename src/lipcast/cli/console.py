"""What the command line says: notes on standard error, one JSON document on standard output."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from lipcast.cli.error_report import Explanation
from lipcast.env import LOGGER_NAME


@dataclass
class Console:
    """How much one command says. `warnings` collects what the JSON document repeats."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, given: Mapping[str, object]) -> Console:
        """Set up from the flags `json`, `quiet`, `verbose` and `debug`."""
        talk = cls(
            as_json=bool(given.get("json")),
            quiet=bool(given.get("quiet")),
            verbose=bool(given.get("verbose")),
        )
        if not given.get("debug"):
            # Warnings of other libraries are for developers.
            warnings.simplefilter("ignore")
        root = logging.getLogger(LOGGER_NAME)
        for old in [handler for handler in root.handlers if isinstance(handler, _Notes)]:
            root.removeHandler(old)
        root.addHandler(_Notes(talk))
        root.setLevel(logging.INFO if talk.verbose else logging.WARNING)
        return talk

    def note(self, sentence: str) -> None:
        """One line for a person."""
        if not self.quiet:
            say(sentence)

    def detail(self, sentence: str) -> None:
        """One line for a person who asked for more."""
        if self.verbose:
            self.note(sentence)

    def warn(self, sentence: str) -> None:
        """One line for a person, repeated in the JSON document."""
        self.warnings.append(sentence)
        self.note(sentence)


class _Notes(logging.Handler):
    """The library's log records become notes; its warnings, warnings."""

    def __init__(self, talk: Console) -> None:
        super().__init__()
        self._talk = talk

    def emit(self, record: logging.LogRecord) -> None:
        say = self._talk.warn if record.levelno >= logging.WARNING else self._talk.note
        say(record.getMessage())


def say(sentence: str) -> None:
    """One line on standard error."""
    typer.echo(f"lipcast: {sentence}", err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """The one document of a command, on standard output."""
    typer.echo(json.dumps(document, indent=2, default=str, allow_nan=False))


def error_document(error: Explanation) -> dict[str, Any]:
    """The document of a command that failed."""
    told = {"kind": error.kind, "message": error.sentence, "exit_code": error.exit_code}
    return {"status": "stopped" if error.was_interrupted else "failed", "error": told}
