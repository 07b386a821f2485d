"""Write the tables of flags in docs/generate.md from the options of the parser.

    .venv/bin/python scripts/flag_docs.py

A test fails while the page and the options differ.
"""

from __future__ import annotations

from pathlib import Path

from lipcast.cli.command import Option, Section
from lipcast.cli.options import OPTIONS

PAGE = Path(__file__).parents[1] / "docs" / "generate.md"
BEGIN, END = "<!-- flags: written by scripts/flag_docs.py -->", "<!-- end of flags -->"


def tables() -> str:
    """Every flag, by section of the help."""
    used = {option.section for option in OPTIONS}
    return "\n".join(_section(section) for section in Section if section in used)


def _section(section: Section) -> str:
    rows = [
        f"| {_spelling(option)} | {option.help} | {option.default_text} |"
        for option in OPTIONS
        if option.section is section
    ]
    head = [f"### {section.value}", "", "| flag | what it does | default |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def _spelling(option: Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return f"{names} {option.value_text}".replace("|", "\\|")


def with_tables(page: str) -> str:
    """The page with its tables replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
