"""The jobs of a table: `job submit --batch`.

Input: a table whose columns are options of `generate`, in any spelling. Output: requests as jobs keep them.
Relative paths count from the table's folder. Errors name the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import click

from lipcast.cli.characters import in_folder
from lipcast.cli.command import Option, Section, as_arguments
from lipcast.cli.generate import generate
from lipcast.cli.job_request import as_job
from lipcast.cli.request import GenerateRequest, read_request
from lipcast.cli.types import FILE, FOLDER, SECONDS, is_there
from lipcast.config.generate_options import EARLIER_NAMES
from lipcast.config.tables import Row, read_table, spelled
from lipcast.errors import InputError, LipcastError, UsageError
from lipcast.media.content import is_address

_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
_WHOLE = re.compile(r"([+-]?\d+)[.,](?:0{1,2}|0{4,})")
_DECIMAL_COMMA = re.compile(r"(\d+),(\d{1,2}|\d{4,})(\D*)")
"""Neither has three digits behind the comma: "1,000" may be a thousand."""


def read_batch(
    path: Path, shared: Mapping[str, Any], how: Mapping[str, Any]
) -> tuple[list[GenerateRequest], list[dict[str, Any]]]:
    """Return the requests of a table, and the jobs made of them.

    `shared`: options of all of them; `how`: fields that only jobs have.
    """
    taken: dict[Path, str] = {}
    requests, jobs = [], []
    for row in read_table(path):
        try:
            request = read_request({**shared, **options_of(row, path.parent)})
            _check_own_output(request, taken, row.place)
            requests.append(request)
            jobs.append(as_job(request, **how))
        except LipcastError as error:
            raise type(error)(f"{row.place}: {error}") from error
    return requests, jobs


def options_of(row: Row, folder: Path = Path()) -> dict[str, Any]:
    """Return the values of a row in the types of the options. Raises InputError."""
    values: dict[str, Any] = {}
    try:
        for column, value in row.values.items():
            option, is_on = _option_of(column)
            if option.name in values:
                raise InputError(
                    f"two columns give --{option.name}; '{column}' is one of them, remove it"
                )
            text = _text(option, column, value, folder)
            is_switch = option.is_flag
            values[option.name] = (
                (click.BOOL.convert(text, option, None) is is_on) if is_switch else text
            )
        return generate.parse(as_arguments(generate, values))
    except click.UsageError as error:
        raise InputError(error.format_message()) from error


def _option_of(column: str) -> tuple[Option, bool]:
    """Return the option of a column, and which value of a switch it gives. Raises InputError."""
    columns = _columns()
    found = columns.get(spelled(column))
    if found is None:
        near = get_close_matches(spelled(column), columns, 1)
        meant = (
            f"did you mean '{columns[near[0]][0].name}'?"
            if near
            else "see `lipcast generate --help`"
        )
        raise InputError(f"no option is called '{column}'; {meant}")
    return found


@cache
def _columns() -> dict[str, tuple[Option, bool]]:
    """Return option and value of a switch by every spelling of a column."""
    found: dict[str, tuple[Option, bool]] = {}
    for option in generate.params:
        if isinstance(option, Option) and option.section != Section.CONSOLE and option.nargs == 1:
            found |= {spelled(name): (option, False) for name in option.secondary_opts}
            found |= {spelled(name): (option, True) for name in (option.name, *option.opts)}
    earlier = {spelled(old): found[spelled(new)] for old, new in EARLIER_NAMES.items()}
    return earlier | found


def _text(option: Option, column: str, value: Any, folder: Path) -> str:
    """Return a value as it would stand on the command line; several as lines."""
    if isinstance(value, list) and option.multiple:
        return "\n".join(_text(option, column, one, folder) for one in value)
    if isinstance(value, (list, dict)):
        raise InputError(f"'{column}': expected one value, got {value!r:.60}")
    text = str(value)
    if _UNWRITABLE.search(text):
        raise InputError(
            f"'{column}': {text!r:.60} contains characters that no text or name can have"
        )
    if isinstance(option.type, click.types.IntParamType) and (whole := _WHOLE.fullmatch(text)):
        return whole[1]
    if option.type in {click.FLOAT, SECONDS}:
        return _DECIMAL_COMMA.sub(r"\1.\2\3", text)
    if text.startswith("~") or is_address(text):
        return text
    if option.name == "character":
        return in_folder(text, folder)
    is_path = option.type.name in {FILE.name, FOLDER.name}
    if not is_path and not (
        option.name in {"model", "lora"} and is_there(folder / text.split(":")[0])
    ):
        return text
    if option.name == "audio" and not is_there(folder / text):
        return "+".join(str(folder / voice) for voice in text.split("+"))
    return f"{folder / text}{'/' if text.endswith('/') else ''}"  # a slash means a folder


def _check_own_output(request: GenerateRequest, taken: dict[Path, str], place: str) -> None:
    """Raise UsageError where another row names the same output; automatic names are told apart later."""
    if "output" in request.randomised_fields:
        return
    output = request.output.resolve()
    if output in taken:
        raise UsageError(f"--output: {taken[output]} writes {output} too; give every row its own")
    taken[output] = place
