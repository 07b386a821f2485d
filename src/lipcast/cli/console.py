"""Output of the command line: notes on standard error, one JSON document on standard output."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from lipcast.cli.error_report import Explanation
from lipcast.env import LOGGER_NAME


@dataclass
class Console:
    """Output settings of one command. `warnings` collects what the JSON document repeats."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, flags: Mapping[str, Any]) -> Console:
        """Set up from the values of `json`, `quiet`, `verbose` and `debug`."""
        quiet, verbose = bool(flags.get("quiet")), bool(flags.get("verbose"))
        console = cls(as_json=bool(flags.get("json")), quiet=quiet, verbose=verbose)
        if not flags.get("debug"):
            # Warnings of other libraries are for developers.
            warnings.simplefilter("ignore")
        root = logging.getLogger(LOGGER_NAME)
        for old in [handler for handler in root.handlers if isinstance(handler, _LogHandler)]:
            root.removeHandler(old)
        root.addHandler(_LogHandler(console))
        root.setLevel(logging.INFO if verbose else logging.WARNING)
        return console

    def log(self, sentence: str) -> None:
        """Print one line for a person."""
        if not self.quiet:
            print_line(sentence)

    def detail(self, sentence: str) -> None:
        """Print one line for a person who asked for more."""
        if self.verbose:
            self.log(sentence)

    def warn(self, sentence: str) -> None:
        """Print one line for a person, once, and repeat it in the JSON document."""
        if sentence in self.warnings:
            return
        self.warnings.append(sentence)
        self.log(sentence)

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print what a command found out: the document with --json, else the text."""
        if self.as_json:
            print_json(document)
        else:
            click.echo(text)


class _LogHandler(logging.Handler):
    """Prints the library's log records on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        write = self._console.warn if is_warning else self._console.log
        write(record.getMessage())


def print_line(sentence: str) -> None:
    """Print one line on standard error."""
    click.echo(f"lipcast: {sentence}", err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one document of a command on standard output."""
    click.echo(json.dumps(document, indent=2, default=str, allow_nan=False))


def error_document(error: Explanation) -> dict[str, Any]:
    """Return the document of a command that failed."""
    status = "stopped" if error.was_interrupted else "failed"
    found = {"kind": error.kind, "message": error.sentence, "exit_code": error.exit_code}
    return {"status": status, "error": found}
