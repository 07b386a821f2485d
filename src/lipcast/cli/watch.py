"""`lipcast job watch`: a table of the jobs of a workspace, redrawn until none waits or runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from lipcast.cli.console import Console, print_json
from lipcast.errors import LipcastError

if TYPE_CHECKING:
    from lipcast.jobs.store import Store

_EVERY_S = 1.0
_COLUMNS = ("job", "state", "segments", "frames", "frames/s", "left", "output")


def watch_jobs(store: Store, console: Console, *, once: bool) -> None:
    """Draw the table until no job waits or runs, or once. Raises LipcastError where jobs failed."""
    if console.as_json:
        print_json({"jobs": _rows(store)})
        return
    rows, screen = _rows(store), RichConsole()
    if once:
        screen.print(_table(rows))
        return
    with Live(_table(rows), console=screen, auto_refresh=False) as live:
        while any(row["state"] in ("waiting", "running") for row in rows):
            time.sleep(_EVERY_S)
            rows = _rows(store)
            live.update(_table(rows), refresh=True)
    num_failed = sum(row["state"] == "failed" for row in rows)
    if num_failed:
        raise LipcastError(f"{num_failed} jobs failed; see `lipcast job list`")


def _rows(store: Store) -> list[dict[str, Any]]:
    from lipcast.jobs.progress import progress

    segments = store.all_segments()
    return [
        {"job": job.id, "state": job.state, "output": job.request["output"], "error": job.error}
        | asdict(progress(job, segments.get(job.id, {}).values()))
        for job in store.jobs()
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(*_COLUMNS)
    for row in rows:
        of = "?" if row["num_segments"] is None else row["num_segments"]
        speed = "" if row["frames_per_s"] is None else f"{row['frames_per_s']:.1f}"
        table.add_row(
            row["job"], row["state"], f"{row['num_done']}/{of}", str(row["num_frames"]), speed,
            _clock(row["eta_s"]), row["error"] or Path(row["output"]).name,
        )  # fmt: skip
    return table


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
