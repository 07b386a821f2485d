"""One self-contained page of results: tables, plots, players, contact sheets, how to measure again.

Input: files of results (.jsonl of sweeps, .json of `lipcast evaluate --json`) and videos. Output: HTML
that needs no network: styles, script, plots, pictures and videos are in it.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lipcast.errors import InputError
from lipcast.lab.report_bench import bench_sections, environment
from lipcast.lab.report_quality import pareto_section, quality_sections
from lipcast.lab.results import CellResult, by_cell, quality_record, read_results
from lipcast.media.image import contact_sheet
from lipcast.media.video import iter_frames

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv"})
_MOST_BYTES = 48 * 2**20
"""Limit of all videos together; the page would not open on a phone with more."""
_SHEET_FRAMES = 8
_SHEET_SIDE = 160


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a page shows."""

    cells: Sequence[CellResult]
    qualities: Sequence[Mapping[str, Any]]
    videos: Sequence[Path]


def read(paths: Iterable[Path]) -> Results:
    """Sort files by what they are. Raises InputError for what cannot be read or holds nothing."""
    paths = list(paths)
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    for video in videos:
        if not video.is_file():
            raise InputError(f"expected a video, found nothing at {video}")
    documents = [path for path in paths if path.suffix.lower() == ".json"]
    records = [_evaluation(path) for path in documents]
    records += read_results(path for path in paths if path not in {*videos, *documents})
    qualities = [record for record in records if record["kind"] == "quality"]
    results = Results(by_cell(records), qualities, videos)
    if not (results.cells or qualities or videos):
        raise InputError("expected results of bench or evaluate, or videos; found none of them")
    return results


def _evaluation(path: Path) -> dict[str, Any]:
    """Return the document of `lipcast evaluate --json` as a record."""
    try:
        document = json.loads(path.read_text("utf-8"))
        assert {"metrics", "curves", "events", "video"} <= set(document)
    except (OSError, ValueError, AssertionError, TypeError) as error:
        raise InputError(
            f"expected the document of lipcast evaluate --json, got {path} ({error})"
        ) from error
    return quality_record(document, {})


def render(results: Results, *, title: str) -> str:
    """Return the whole page."""
    sections: list[tuple[str, str]] = []
    if results.cells:
        sections += bench_sections(results.cells)
    if results.qualities:
        sections += quality_sections(results.qualities)
        sections += pareto_section(results.cells, results.qualities)
    if results.videos:
        sections += [
            ("Players", _players(results.videos)),
            ("Contact sheets", _sheets(results.videos)),
        ]
    if results.cells:
        sections.append(("Environment and commands", environment(results.cells)))
    body = "".join(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections)
    style, script = _asset("report.css"), _asset("report.js")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f"<h1>{escape(title)}</h1>{body}<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("lipcast.lab").joinpath("page", name).read_text("utf-8")


def _players(videos: Sequence[Path]) -> str:
    """Return videos side by side with one slider."""
    left_bytes = _MOST_BYTES
    shown = []
    for video in videos:
        size = video.stat().st_size
        if size > left_bytes:
            shown.append(f"<div>{escape(video.name)}: left out, {size / 2**20:.0f} MiB</div>")
            continue
        left_bytes -= size
        source = _data(video.read_bytes(), "video/mp4")
        player = f'<video src="{source}" preload="auto" playsinline muted></video>'
        shown.append(f"<div>{player}<div class=soft>{escape(video.name)}</div></div>")
    controls = (
        '<div class=controls><button type="button">Play</button><input type="range" min="0" max="1" '
        'step="any" value="0" aria-label="position in all videos"><output></output></div>'
    )
    hint = "<p class=soft>One slider for all; the arrow keys go frame by frame; the first one sounds.</p>"
    return f"<div data-players>{controls}<div class=players>{''.join(shown)}</div></div>{hint}"


def _sheets(videos: Sequence[Path]) -> str:
    return "".join(
        f'<figure><img class="sheet" alt="frames of {escape(video.name)}" src="{_sheet(video)}">'
        f"<figcaption>{escape(video.name)}, {_SHEET_FRAMES} frames evenly spread</figcaption></figure>"
        for video in videos
    )


def _sheet(video: Path) -> str:
    """Return a few frames in a row, as a picture in a data URI."""
    num_frames = sum(1 for _ in iter_frames(video))
    wanted = {round(i * (num_frames - 1) / (_SHEET_FRAMES - 1)) for i in range(_SHEET_FRAMES)}
    picked = [frame for i, frame in enumerate(iter_frames(video)) if i in wanted]
    factor = max(1, min(picked[0].shape[:2]) // _SHEET_SIDE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        contact_sheet([frame[::factor, ::factor] for frame in picked], len(picked), path)
        return _data(path.read_bytes(), "image/png")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
