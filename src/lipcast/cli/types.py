"""Types of option values that click does not have: lengths of time, and paths in the home folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from lipcast.env import expand_home
from lipcast.errors import InputError, UsageError
from lipcast.media.content import NOT_A_FILE, is_address, shortened

_UNITS = (("min", 60.0), ("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0))


def parse_seconds(text: str) -> float:
    """Return a length of time such as 60s or 2min in seconds; raises ValueError."""
    written = text.strip().lower()
    for unit, factor in _UNITS:
        number = written.removesuffix(unit)
        if written.endswith(unit) and re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", number):
            return float(number) * factor
    raise ValueError(f"'{text}' is not a length of time such as 60s or 2min")


def is_there(path: Path) -> bool:
    """Return whether there is something of this name; one that nothing can have is not there."""
    try:
        return path.exists()
    except OSError:  # too long, or not allowed
        return False


def checked_file(path: Path, option: str, what: str) -> Path:
    """Return a path at which there is a file. Raises InputError."""
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise InputError(f"--{option}: {path} cannot be read ({error.strerror})") from error
    if path.is_dir():
        raise InputError(f"--{option}: expected {what} file, but {path} is a folder")
    raise InputError(f"--{option}: {path} does not exist. Check the path.")


def _refuse_address(text: str, param: click.Parameter | None) -> None:
    if is_address(text) and not Path(text).exists():
        option = param.opts[-1] if isinstance(param, click.Option) else "argument"
        raise InputError(f"{option}: {shortened(text)} {NOT_A_FILE}")


class _Seconds(click.ParamType[float]):
    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return value if isinstance(value, float) else parse_seconds(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _Count(click.types.IntParamType):
    """A whole number of at least 1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        count: int = super().convert(value, param, ctx)
        if count < 1:
            self.fail(f"expected at least 1, got {count}.", param, ctx)
        return count


class _Path(click.Path):
    """A path that may begin with `~`. Whether it is there is found out where it is used."""

    def __init__(self, name: str, *, folder: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=not folder)
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        _refuse_address(str(value), param)
        return super().convert(expand_home(Path(value)), param, ctx)


class _Text(click.ParamType[str]):
    """Text in UTF-8, also where the locale names another encoding."""

    name = "text"

    def convert(
        self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> str:
        try:
            return os.fsencode(value).decode("utf-8")
        except UnicodeError:  # really in that encoding, or no text at all: whoever uses it says so
            return str(value)


class _Output(click.ParamType[str]):
    """A file or folder to write, as text: a slash at its end means a folder."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, _ctx: click.Context | None) -> str:
        _refuse_address(value, param)
        if not value:
            raise UsageError("--output is empty; give a file or a folder")
        is_folder = value.endswith(("/", os.sep))
        return f"{expand_home(Path(value))}{os.sep if is_folder else ''}"


SECONDS = _Seconds()
OUTPUT = _Output()
TEXT = _Text()
FILE = _Path("file")
FOLDER = _Path("folder", folder=True)
COUNT = _Count()
