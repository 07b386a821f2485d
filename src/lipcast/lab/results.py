"""Results of sweeps and evaluations: read back, grouped by cell, with median and spread.

Input: JSON-lines files, one record a line: `kind` is "bench" or "quality". Output: records, and
`CellResult`s. Torn lines, of sweeps that were killed, are left out.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcast.config.models import VIDEO_FPS
from lipcast.config.text_file import read_text
from lipcast.env import logger
from lipcast.errors import InputError, OutputError

_log = logger("lab.results")
BLOCK_S = 0.48
"""Seconds of video in a block: the time it may take for real time."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of some repeats, with the least and the greatest."""

    median: float
    least: float
    most: float
    n: int

    def scaled(self, unit: float) -> Spread:
        """Convert to another unit: `unit` of the old ones."""
        return Spread(self.median / unit, self.least / unit, self.most / unit, self.n)

    def text(self, digits: int = 2) -> str:
        """Return "1.23 (1.20-1.31)"; the median alone where there is one value."""
        if self.n == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


@dataclass(frozen=True, slots=True)
class CellResult:
    """All repeats of one cell."""

    cell: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def good(self) -> list[Mapping[str, Any]]:
        """The repeats that were measured."""
        return [record for record in self.records if record["status"] == "ok"]

    @property
    def status(self) -> str:
        """ "ok" where a repeat was measured, else the last outcome with its reason."""
        if self.good:
            lost = len(self.records) - len(self.good)
            return f"ok, {lost} of {len(self.records)} repeats lost" if lost else "ok"
        last = self.records[-1]
        at = [f"{name} {last[name]}" for name in ("block", "step") if name in last]
        place = f" at {', '.join(at)}" if at else ""
        return f"{last['status']}{place}: {last['reason']}"

    @property
    def name(self) -> str:
        """The cell's flags in few words."""
        return ", ".join(f"{name} {value}" for name, value in self.cell.items())

    def spread(self, name: str) -> Spread | None:
        """Return the spread of one of the columns of `figures`; None where no repeat has it."""
        found = [figures(record).get(name) for record in self.good]
        numbers = [value for value in found if value is not None]
        if not numbers:
            return None
        return Spread(statistics.median(numbers), min(numbers), max(numbers), len(numbers))


def figures(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of one measured repeat.

    frames_per_s, first_frame_s, block_s (seconds per block of 12 frames) and the parts of it; cpu_s:
    seconds that processors worked for a block, which other programs disturb less;
    real_time: seconds of computing for a second of video, under 1 is faster than it plays; peak_rss,
    peak_vram (allocator, largest card), nvml (sampled, largest card), in bytes; energy_j per process;
    predicted, in bytes, and predicted_block_s.
    """
    document = record.get("document", {})
    row: Mapping[str, Any] = next(iter(document.get("rows", ())), {})
    conditions, predicted = document.get("conditions", {}), document.get("predicted", {})
    samples, gpus = record.get("samples", {}), conditions.get("gpus") or []
    block_s = row.get("block_s")
    return {
        **{name: row.get(name) for name in ("frames_per_s", "first_frame_s", "block_s", "cpu_s")},
        **row.get("parts", {}),
        "real_time": None if block_s is None else block_s / BLOCK_S,
        "peak_rss": conditions.get("peak_rss_bytes"),
        "peak_vram": max(
            (gpu["peak_reserved_bytes"] for gpu in gpus if "peak_reserved_bytes" in gpu),
            default=None,
        ),
        "nvml": max(samples.get("gpu_peak_bytes", ()), default=None),
        "energy_j": samples.get("energy_j"),
        "predicted": predicted.get("bytes"),
        "predicted_block_s": predicted.get("block_s"),
    }


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return every whole record of some files, in order. Raises InputError."""
    return [record for path in paths for record in _read(path)]


def _read(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            record = json.loads(line.strip() or "null")
        except (ValueError, RecursionError):
            _log.warning("%s:%d: a torn line is left out", path, number)
            continue
        if isinstance(record, dict) and "kind" in record:
            records.append(_completed(record))
    if text and not records:
        raise InputError(f"expected a file of results, got {path} without a single one")
    return records


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """Fill in what shortened and older records lack, so that every reader finds the same keys."""
    if record["kind"] == "bench":
        lacking: dict[str, Any] = {
            "cell": {},
            "status": "failed",
            "reason": "no status",
            "samples": {},
        }
        return lacking | record
    if record["kind"] != "quality":
        return record
    names = (str(record[name]) for name in ("portrait", "voice") if name in record)
    values = record.get("values", {})
    short = {
        "video": ", ".join(names) or "a video",
        "fps": float(VIDEO_FPS),
        "metrics": [_short_metric(name, value) for name, value in values.items()],
        "curves": {},
        "events": {},
    }
    return {"cell": {}} | record | {"evaluation": short | record.get("evaluation", {})}


def _short_metric(name: str, value: float) -> dict[str, Any]:
    """Return a metric of which only "group: name" and the value were kept."""
    group, _, inner = name.rpartition(": ")
    return {"group": group, "name": inner, "value": value, "unit": "", "reason": "", "note": ""}


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record; a torn last line, of whoever was killed, is ended first. Raises OutputError."""
    try:
        with path.open("ab+") as file:
            file.seek(-1 if file.tell() else 0, os.SEEK_END)
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def quality_record(evaluation: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation's document as a record; `cell`: the flags that its video was made with."""
    return {"kind": "quality", "cell": dict(cell), "evaluation": dict(evaluation)}


def by_cell(records: Iterable[Mapping[str, Any]]) -> list[CellResult]:
    """Return the records of sweeps, gathered by cell, in the order in which cells first came."""
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "bench":
            gathered.setdefault(json.dumps(record["cell"], sort_keys=True), []).append(record)
    return [CellResult(found[0]["cell"], found) for found in gathered.values()]
