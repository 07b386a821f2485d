"""From the table of flags to a typer command.

Typer reads a function's signature. A signature of fifty flags is not a thing to write by hand
beside the table that defines them, so the table makes it. Every value arrives as text, so that a
wrong one gets the same sentence as everywhere else; a flag that was not given arrives as None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.validate import RawFlags
from lipcast.errors import CancelledError


@dataclass(frozen=True, slots=True)
class Positional:
    """The one argument that a verb takes without a flag; `many` come as a text of several lines."""

    name: str
    help: str
    many: bool = False


def with_flags(
    flags: Iterable[Flag], *, positional: Positional | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes a mapping of the given flags the parameters of `flags`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def command(**values: RawFlags | list[str] | None) -> None:
            given = {k: _joined(v) for k, v in values.items() if v is not None and v != []}
            try:
                verb(given)
            except KeyboardInterrupt as error:
                # Here, because typer turns it into an exit without a word.
                raise CancelledError("stopped; nothing was written") from error

        parameters = [_argument(positional)] if positional else []
        parameters += [_parameter(flag) for flag in flags]
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        return command

    return decorate


def _argument(positional: Positional) -> Parameter:
    argument: Any = typer.Argument(help=positional.help, metavar=positional.name.upper())
    kind = Parameter.POSITIONAL_OR_KEYWORD
    value_type: Any = list[str] if positional.many else str
    return Parameter(positional.name, kind, annotation=Annotated[value_type, argument])


def _joined(value: RawFlags | list[str]) -> RawFlags:
    """What was given several times as one text of several lines."""
    return "\n".join(value) if isinstance(value, list) else value


def _parameter(flag: Flag) -> Parameter:
    is_bare = flag.kind in {Kind.SWITCH, Kind.TOGGLE}
    option: Any = typer.Option(
        *flag.spellings,
        help=f"{flag.help} Default: {flag.default}." if flag.default else flag.help,
        metavar="" if is_bare else flag.kind.value,
        show_default=False,
        rich_help_panel=flag.group.value,
        hidden=flag.group is Group.REFUSED,
    )
    value_type: Any = (bool if is_bare else list[str] if flag.kind is Kind.TEXTS else str) | None
    annotation = Annotated[value_type, option]
    return Parameter(flag.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def either_spelling(name: str) -> str:
    """`--infer-frames` and `--infer_frames` are one flag."""
    return name.replace("-", "_")
