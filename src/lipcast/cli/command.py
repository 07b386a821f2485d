"""Commands, options and help pages: click with sections, examples, and two spellings of a name.

Input: options declared once, as data. Output: click commands. A command's function gets a `Console` set up
from --json, --quiet, --verbose and --debug, and its other values in the types that its options declare.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from enum import StrEnum
from typing import Any

import click
from click.core import ParameterSource
from click.types import OptionHelpExtra

from lipcast.cli.console import Console
from lipcast.config.generate_options import EARLIER_NAMES
from lipcast.errors import CancelledError, UsageError

_CONSOLE = ("json", "quiet", "verbose", "debug")


class Section(StrEnum):
    """The sections of a help page, in order."""

    MAIN = "Main options"
    DIRECTING = "Directing"
    SPEECH = "Speech"
    FILES = "Input and output"
    VIDEO = "Video"
    COMPUTE = "Computation"
    MEMORY = "Memory (planned on a GPU; on a CPU only with --vram)"
    ACCESS = "Access"
    LIMITS = "Limits"
    GPUS = "Several GPUs (several processes on a CPU)"
    CONSOLE = "Messages and help"
    COMPATIBILITY = "Compatibility: public Live Avatar flags that change nothing here"
    REFUSED = "Public Live Avatar flags that this version refuses"


def _normalised(name: str) -> str:
    """Return the one name that `--infer-frames`, `--infer_frames` and an earlier name of it share."""
    name = name.replace("-", "_")
    return EARLIER_NAMES.get(name, name)


_SETTINGS: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": _normalised,
    "max_content_width": 100,
}


class Option(click.Option):
    """An option that is listed in a section of the help page."""

    def __init__(
        self,
        name: str,
        help: str,
        *,
        section: Section = Section.MAIN,
        also: Sequence[str] = (),
        **attributes: Any,
    ) -> None:
        """`also` are other spellings of `--name`; the rest goes to `click.Option`."""
        spelled = f"--{name}/--no_{name}" if attributes.get("is_toggle") else f"--{name}"
        attributes.pop("is_toggle", None)
        short = [spelling for spelling in also if not spelling.startswith("--")]
        long = [spelling for spelling in also if spelling.startswith("--")]
        super().__init__([name, *short, spelled, *long], help=help, **attributes)
        self.section = section

    def with_default(self, text: str) -> Option:
        """Return the same option with another default in words."""
        other = copy(self)
        other.show_default = text
        return other

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Return what follows the help text; click writes a default in words in parentheses."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra

    @property
    def value_text(self) -> str:
        """Value of the option, as the help shows it."""
        return self.make_metavar(click.Context(click.Command(self.name)))

    @property
    def default_text(self) -> str:
        """The default in words or as a value; empty for none."""
        if isinstance(self.show_default, str):
            return self.show_default
        return str(self.default) if self.show_default else ""


def switch(name: str, help: str, **attributes: Any) -> Option:
    """Return an option without a value, off unless it is given."""
    return Option(name, help, is_flag=True, default=False, **attributes)


def toggle(name: str, help: str, *, default: str, **attributes: Any) -> Option:
    """Return the pair `--name` and `--no_name`; `default` says which of them holds."""
    return Option(
        name, help, is_flag=True, is_toggle=True, default=None, show_default=default, **attributes
    )


class Command(click.Command):
    """A command whose options are listed by section, with examples below."""

    def __init__(
        self,
        name: str,
        *,
        examples: Sequence[str] = (),
        given_only: bool = False,
        when_stopped: str = "",
        **attributes: Any,
    ) -> None:
        """`given_only`: the function gets no values for options that were not given.

        `when_stopped` says what is left after Ctrl-C.
        """
        super().__init__(name, context_settings=dict(_SETTINGS), **attributes)
        self.examples = tuple(examples)
        self.given_only = given_only
        self.when_stopped = when_stopped

    def invoke(self, ctx: click.Context) -> None:
        """Call the command's function; Ctrl-C becomes a CancelledError."""
        assert self.callback is not None
        console = Console.begin(ctx.params)
        values = given_values(ctx) if self.given_only else ctx.params
        try:
            self.callback(console, **{k: v for k, v in values.items() if k not in _CONSOLE})
        except KeyboardInterrupt as error:
            # Here, because click turns it into an exit without a word.
            raise CancelledError("; ".join(filter(None, ("stopped", self.when_stopped)))) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section after the other."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", Section.CONSOLE)
                rows.setdefault(section, []).append(record)
        for section in Section:
            if section in rows:
                with formatter.section(section):
                    formatter.write_dl(rows[section])

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one command a line."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    lines = example.splitlines()
                    formatter.write("".join(f"  {line}\n" for line in lines))

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the values of the options that `arguments` give. Raises click's UsageError."""
        with self.make_context(self.name, list(arguments)) as context:
            return given_values(context)

    def option(self, name: str) -> Option | None:
        """Return an option by its name; None where the command has no such option."""
        name = EARLIER_NAMES.get(name, name)
        found = (p for p in self.params if isinstance(p, Option) and p.name == name)
        return next(found, None)


def command(
    name: str,
    parameters: Iterable[click.Parameter],
    *,
    examples: Sequence[str] = (),
    given_only: bool = False,
    when_stopped: str = "",
) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function, whose docstring becomes the help text."""

    def decorate(function: Callable[..., None]) -> Command:
        return Command(
            name,
            params=list(parameters),
            callback=function,
            help=inspect.getdoc(function),
            examples=examples,
            given_only=given_only,
            when_stopped=when_stopped,
        )

    return decorate


class Group(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name, context_settings=dict(_SETTINGS), no_args_is_help=True, **attributes)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in order of addition."""
        return list(self.commands)


def given_values(context: click.Context) -> dict[str, Any]:
    """Return the values of the options that stand on the command line."""
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def as_arguments(command: Command, values: Mapping[str, Any]) -> list[str]:
    """Return the words that give `values` to a command; raises UsageError for an unknown name.

    Values may be text; a switch takes what click takes for true and false.
    """
    words = []
    for name, value in values.items():
        option = command.option(name)
        if option is None:
            raise UsageError(f"unknown flag '{name}'; see `lipcast {command.name} --help`")
        if option.is_flag:
            is_on = click.BOOL.convert(value, option, None)
            words += option.opts[-1:] if is_on else option.secondary_opts[-1:]
        else:
            lines = str(value).splitlines() if option.multiple else [str(value)]
            words += [word for line in lines for word in (f"--{name}", line)]
    return words


def value_options(options: Iterable[Option], *names: str) -> tuple[Option, ...]:
    """Return those of `options` that are called by one of `names`."""
    return tuple(option for option in options if option.name in names)
