"""Writes the tables of flags in docs/generate.md from the table that the parser is made from.

    .venv/bin/python scripts/flag_docs.py

A test fails while the page and the table differ.
"""

from __future__ import annotations

from pathlib import Path

from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS

PAGE = Path(__file__).parents[1] / "docs" / "generate.md"
BEGIN, END = "<!-- flags: written by scripts/flag_docs.py -->", "<!-- end of flags -->"


def tables() -> str:
    """Every flag, by section of the help."""
    parts = [_section(group, [flag for flag in FLAGS if flag.group is group]) for group in Group]
    return "\n".join(parts)


def _section(group: Group, flags: list[Flag]) -> str:
    rows = [f"| {_spelling(flag)} | {flag.help} | {flag.default} |" for flag in flags]
    head = [f"### {group.value}", "", "| flag | what it does | default |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def _spelling(flag: Flag) -> str:
    names = ", ".join(f"`{name}`" for spelling in flag.spellings for name in spelling.split("/"))
    return names if flag.kind in {Kind.SWITCH, Kind.TOGGLE} else f"{names} {flag.kind.value}"


def with_tables(page: str) -> str:
    """The page with its tables replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
