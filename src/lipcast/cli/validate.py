"""From what stands on the command line to what is done: every flag judged by its rule.

Input: the words given by flag name. Output: a `ParsedFlags` with the settings, and what was accepted
because it asks for what Lipcast does anyway. Raises UsageError for a value of the wrong kind and
NotBuiltError for what this version cannot do; nothing given is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lipcast.cli.flag import CompatNoOp, Flag, Kind, SetsOption, Unsupported
from lipcast.cli.flag_table import FLAGS
from lipcast.errors import NotBuiltError, UsageError

RawFlags = str | bool
Value = str | bool | int | float

_UNITS = (("min", 60.0), ("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0))
_TRUE = frozenset({"true", "yes", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "f", "n", "0"})


@dataclass(frozen=True, slots=True)
class ParsedFlags:
    """`settings` by target; `accepted`: the reason by flag."""

    settings: Mapping[str, Value]
    accepted: Mapping[str, str]


def validate(given: Mapping[str, RawFlags]) -> ParsedFlags:
    """Judge the flags that were given."""
    settings: dict[str, Value] = {}
    accepted: dict[str, str] = {}
    for flag in FLAGS:
        if flag.name not in given:
            continue
        if isinstance(flag.rule, Unsupported):
            raise NotBuiltError(f"--{flag.name}: {flag.rule.sentence}")
        value = parse(flag, given[flag.name])
        if isinstance(flag.rule, SetsOption):
            _set(settings, flag, flag.rule.value or value)
        else:
            accepted[flag.name] = _accept(flag, flag.rule, value)
    return ParsedFlags(MappingProxyType(settings), MappingProxyType(accepted))


def _set(settings: dict[str, Value], flag: Flag, value: Value) -> None:
    """Two flags may set the same; they may not contradict each other."""
    before = settings.setdefault(flag.target, value)
    if before != value:
        raise UsageError(
            f"--{flag.name}: asks for {flag.target} {value}, and --{flag.target} for {before}; "
            "leave one of them out"
        )


def _accept(flag: Flag, rule: CompatNoOp, value: Value) -> str:
    """Why the value is accepted; raises NotBuiltError where it is not."""
    fits = rule.values is None or value in rule.values
    if not fits:
        raise NotBuiltError(f"--{flag.name}: {rule.otherwise}; got {value}")
    return rule.because


def parse(flag: Flag, given: RawFlags) -> Value:
    """The value of one flag in its kind; raises UsageError naming what was expected."""
    if isinstance(given, bool):
        return given
    value = _PARSERS[flag.kind](given)
    if value is None:
        raise UsageError(f'--{flag.name}: expected {_EXPECTED[flag.kind]}, got "{given}"')
    return value


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _truth(text: str) -> bool | None:
    word = text.lower()
    return word in _TRUE if word in _TRUE | _FALSE else None


_PARSERS: Mapping[Kind, Callable[[str], Value | None]] = MappingProxyType(
    {
        Kind.TEXT: str,
        Kind.TEXTS: str,
        Kind.WHOLE_VIDEO: _whole,
        Kind.NUMBER: _number,
        Kind.TRUTH: _truth,
    }
)
_EXPECTED: Mapping[Kind, str] = MappingProxyType(
    {Kind.WHOLE_VIDEO: "a whole number", Kind.NUMBER: "a number", Kind.TRUTH: "True or False"}
)


def parse_seconds(name: str, text: str) -> float:
    """A length of time as people write it, in seconds; raises UsageError."""
    for unit, factor in _UNITS:
        number = text.strip().lower().removesuffix(unit)
        if text.strip().lower().endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise UsageError(f'--{name}: expected a length like 60s or 2min, got "{text}"')
