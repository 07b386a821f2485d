"""`lipcast report`: one page of results that can be sent to somebody.

Input: files of results and videos. Output: one HTML file that needs no network.
"""

from __future__ import annotations

from pathlib import Path

import click

from lipcast.cli.command import Option, Section, command
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import JSON_DEBUG
from lipcast.cli.types import FILE
from lipcast.errors import UsageError


@command(
    "report",
    (
        click.Argument(
            ["results"], nargs=-1, required=True, type=FILE,
            help="Results of bench and evaluate, and videos.",
        ),
        Option(
            "output", "HTML page to write.",
            section=Section.FILES, also=("-o",), type=FILE, default="report.html", show_default=True,
        ),
        Option(
            "title", "Headline of the page.",
            section=Section.FILES, metavar="TEXT", default="Lipcast: measured", show_default=True,
        ),
        *JSON_DEBUG,
    ),
    examples=(
        "lipcast report bench.jsonl quality.jsonl -o report.html",
        "lipcast report one.mp4 other.mp4 -o compare.html",
    ),
)  # fmt: skip
def report(console: Console, *, results: tuple[Path, ...], output: Path, title: str) -> None:
    """Make one page of results.

    It shows tables, plots, players with one slider, and contact sheets.

    The page needs no network and no other file.
    """
    from lipcast.lab.report import read, render
    from lipcast.media.target import explained

    if output.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--output: expected a name that ends in .html, got {output}")
    page = render(read(list(results)), title=title)
    try:
        output.write_text(page, "utf-8")
    except OSError as error:
        raise explained(output, error) from error
    num_bytes = output.stat().st_size
    if console.as_json:
        print_json({"status": "finished", "output": str(output), "bytes": num_bytes})
    console.log(f"{output}: {num_bytes / 2**20:.1f} MiB")
