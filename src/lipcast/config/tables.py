"""Tables that a person wrote: CSV as any spreadsheet saves it, JSON lines, or a JSON list.

Input: a file. Output: rows of named values, each with the place by which its writer finds it again. What the
file is follows from its text, not from its name. Raises InputError, which names the row and the column.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcast.config.text_file import read_text
from lipcast.errors import InputError

_DELIMITERS = ",;\t|"
_COMMENT = "# "
_NUMBER_FIRST = re.compile(r'\s*"?\d[\d:.,]*?"?\s*([,;\t|])(?!\d+[;\t|])')
"""A line that begins with a number, and the delimiter behind it; "0,5;" is one number."""
_FIRST_LINE_OF_EXCEL = re.compile(r"\ufeff?sep=(.)\r?\n")


@dataclass(frozen=True, slots=True)
class Row:
    """Values by column, as they are written there; fields that are empty are left out."""

    place: str
    """Such as "jobs.csv, row 3": rows are numbered as a spreadsheet numbers them."""
    values: Mapping[str, Any]


def read_table(path: Path, *, columns: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a table. Raises InputError, also for a table without rows.

    `columns`: names of the columns where the first line is no line of names, but begins with a number.
    """
    return parse_table(read_text(path), str(path), columns=columns)


def parse_table(text: str, name: str, *, columns: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a table that is given as text; `name` is used in messages."""
    is_json = text.lstrip()[:1] in {"{", "["} and text.strip() != ""
    rows = list(_json_rows(text, name) if is_json else _csv_rows(text, name, columns))
    if not rows:
        what = "rows below it" if columns else "a row for each video"
        raise InputError(
            f"{name}: there are no rows in it; write a line of column names and {what}"
        )
    return rows


def spelled(name: str) -> str:
    """Return what all spellings of a column share: "--num_clip", "num-clip", "Num Clip", "numClip"."""
    return re.sub(r"[\W_]", "", name).lower()


# CSV


def _csv_rows(text: str, name: str, columns: Sequence[str] = ()) -> Iterator[Row]:
    excel = _FIRST_LINE_OF_EXCEL.match(text)
    if excel is not None:
        text = text[excel.end() :]
    delimiter = _delimiter(text) if excel is None else excel[1]
    header: list[str] = []
    begin = _NUMBER_FIRST.match(_first_line(text)) if columns else None
    if begin is not None:
        header, delimiter = list(columns), begin[1] if excel is None else excel[1]
    for number, fields in enumerate(_records(text, delimiter, name), 1):
        fields = [field.strip() for field in fields]
        if not any(fields) or fields[0].startswith(_COMMENT):
            continue
        place = f"{name}, row {number}"
        if header:
            yield Row(place, _named(fields, header, place))
        else:
            header = _checked_header(fields, place)


def _records(text: str, delimiter: str, name: str) -> list[list[str]]:
    """Return the fields of all records; a line break in quotes is kept."""
    records: list[list[str]] = []
    try:
        records += _reader(text, delimiter)
    except csv.Error:
        records.clear()
        # Blanks behind a closing quote, which the reader refuses.
        tidy = re.sub(r'" +(?=[,;|\t\r\n]|$)', '"', text)
        try:
            for fields in _reader(tidy, delimiter):
                records.append(fields)
        except csv.Error as error:
            raise InputError(
                f"{name}, row {len(records) + 1}: {error}. Write a quotation mark inside of quotes "
                "twice, and close every quote."
            ) from error
    return records


def _reader(text: str, delimiter: str) -> Iterator[list[str]]:
    # newline="": the reader itself has to see the line breaks that stand in quotes.
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _delimiter(text: str) -> str:
    """Return the delimiter that the line of column names has most of."""
    outside = re.sub(r'"[^"]*"', "", _first_line(text))
    return max(_DELIMITERS, key=outside.count)


def _first_line(text: str) -> str:
    """Return the first line that is neither empty nor a comment."""
    lines = (line for line in re.split(r"[\r\n]+", text) if line.strip())
    return next((line for line in lines if not line.startswith(_COMMENT)), "")


def _checked_header(fields: Sequence[str], place: str) -> list[str]:
    """Return the column names without empty ones at the end; raises InputError for one given twice."""
    seen: dict[str, int] = {}
    for column, field in enumerate(fields, 1):
        if field and (first := seen.setdefault(spelled(field), column)) != column:
            raise InputError(
                f"{place}: columns {first} and {column} have one name, {field!r}; remove one of them"
            )
    return list(fields)


def _named(fields: Sequence[str], header: Sequence[str], place: str) -> dict[str, Any]:
    values = {}
    for column, field in enumerate(fields):
        if not field:
            continue
        if column >= len(header) or not header[column]:
            raise InputError(
                f"{place}: column {column + 1} has no name in the first row, and {field!r} in this one; put "
                "text that contains the delimiter in quotes"
            )
        values[header[column]] = field
    return values


# JSON


def _json_rows(text: str, name: str) -> Iterator[Row]:
    """Yield the objects that stand one after the other, or in one list."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position, number = _after_space(text, 0), 0
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(_json_problem(error, name, text, line)) from error
        for item in value if isinstance(value, list) else [value]:
            number += 1
            place = f"{name}, item {number}" if isinstance(value, list) else f"{name}, line {line}"
            if not isinstance(item, dict):
                raise InputError(f"{place}: expected an object with named values, got {item!r:.40}")
            yield Row(place, {key: v for key, v in item.items() if v not in (None, "", [])})
        position = _after_space(text, end)


def _after_space(text: str, position: int) -> int:
    """Return where the next value begins; a comma between lines is passed over."""
    found = re.compile(r"[\s,\ufeff]*").match(text, position)
    return found.end() if found else position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len({spelled(key) for key in found}) < len(pairs):
        raise ValueError(f"an object names a column twice: {', '.join(key for key, _ in pairs)}")
    return found


def _json_problem(error: Exception, name: str, text: str, line: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = text.count("\n", 0, error.pos) + 1
        return f"{name}, line {line}: is not JSON ({error.msg}); check commas, quotes and brackets"
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
    return f"{name}, line {line}: cannot be read as JSON: {reason}"
