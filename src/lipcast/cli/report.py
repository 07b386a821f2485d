"""`lipcast report`: one page of results that can be sent to somebody.

Input: files of results and videos. Output: one HTML file that needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.options import Positional, either_spelling, with_flags
from lipcast.cli.validate import RawFlags
from lipcast.errors import UsageError

_TITLE = "Lipcast: measured"
_RESULTS = Positional("results", "Results of bench and evaluate, and videos.", many=True)
REPORT_FLAGS: tuple[Flag, ...] = (
    Flag("output", Group.FILES, Kind.TEXT, "The page.", default="report.html", also=("-o",)),
    Flag("title", Group.FILES, Kind.TEXT, "Its headline.", default=_TITLE),
    Flag("json", Group.TALK, Kind.SWITCH, "Print one JSON document of what was written."),
    Flag("debug", Group.TALK, Kind.SWITCH, "Show the traceback of an error."),
)


def report(given: Mapping[str, RawFlags]) -> None:
    """Make one page of results: tables, plots, players with one slider, contact sheets.

        lipcast report bench.jsonl quality.jsonl -o report.html
        lipcast report one.mp4 other.mp4 -o compare.html

    The page needs no network and no other file.
    """
    from lipcast.lab.report import read, render
    from lipcast.media.mp4 import explained

    talk = Console.begin(given)
    output = Path(str(given.get("output", "report.html"))).expanduser()
    paths = [Path(name).expanduser() for name in str(given["results"]).splitlines()]
    if output.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--output: expected a name that ends in .html, got {output}")
    page = render(read(paths), title=str(given.get("title", _TITLE)))
    try:
        output.write_text(page, "utf-8")
    except OSError as error:
        raise explained(output, error) from error
    if talk.as_json:
        print_json({"status": "finished", "output": str(output), "bytes": output.stat().st_size})
    talk.note(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def register(app: typer.Typer) -> None:
    """Add the verb to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    verb = with_flags(REPORT_FLAGS, positional=_RESULTS)(report)
    app.command("report", context_settings=context)(verb)
