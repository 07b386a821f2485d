"""A command line of `generate` as values, for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

from lipcast.cli.command import as_arguments
from lipcast.cli.generate import generate


def parse(*words: str) -> dict[str, Any]:
    """The values of the options that stand in `words`."""
    return generate.parse(words)


def flags(**values: object) -> list[str]:
    """The words that give `values`."""
    return as_arguments(generate, values)
