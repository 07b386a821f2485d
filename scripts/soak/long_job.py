"""A voice of hours as a job: its cut, first and last segment, the size of the store, and memory on the way.

    .venv/bin/python scripts/soak/long_job.py --hours 3

The last segment goes on from the past of the first, as if it were that of the one before: it costs the same.
The store is filled with a row for every segment. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from seams import EXAMPLES, long_voice

from lipcast.cli.main import main as lipcast
from lipcast.engine.snapshot_file import read_snapshot, write_snapshot
from lipcast.jobs.independent import pieces_of
from lipcast.jobs.local import LocalRenderer
from lipcast.jobs.store import Segment, Store
from lipcast.jobs.tasks import JobEstimate, SegmentTask

SEGMENT_S = 60
SEGMENT_BLOCKS = 125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments.hours), indent=2))


def measure(folder: Path, hours: float) -> dict[str, Any]:
    found: dict[str, Any] = {"hours": hours}
    voice = long_voice(folder / "voice.wav", hours * 3600)
    with step(found, "submit"):
        submit(folder, voice)
    store, renderer = Store(folder / "jobs"), LocalRenderer()
    claim = store.lease()
    assert claim is not None
    request = claim.job.request
    with step(found, "load_and_plan"):
        estimate = renderer.estimate(request)
    num_segments = -(-estimate.num_blocks // SEGMENT_BLOCKS)
    store.plan(claim, num_segments)
    with step(found, "first_segment"):
        report = renderer.render(request, first(folder))
    with step(found, "last_segment"):
        renderer.render(request, last(folder, estimate, num_segments))
    for number in range(num_segments):
        store.add_segment(claim, Segment(number, "0" * 64, "0" * 64, rounded(report)))
    with step(found, "cut_into_pieces"):
        pieces = pieces_of(voice, folder / "pieces", SEGMENT_S)
    claim.release()
    return found | {
        "blocks": estimate.num_blocks,
        "segments": num_segments,
        "pieces": len(pieces),
        "store_bytes": sum(path.stat().st_size for path in (folder / "jobs").glob("jobs.sqlite*")),
        "past_bytes": (folder / "first.past").stat().st_size,
        "segment_bytes": (folder / "first.mp4").stat().st_size,
    }


class step:  # noqa: N801 (used like a word)
    """Notes seconds and resident memory of one step."""

    def __init__(self, found: dict[str, Any], name: str) -> None:
        self._found, self._name = found, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self._found[self._name] = {
            "s": round(time.perf_counter() - self._began, 1),
            "rss_mib": round(psutil.Process().memory_info().rss / 2**20),
        }


def submit(folder: Path, voice: Path) -> None:
    words = [
        "job", "submit", "--image", EXAMPLES / "portrait_0.png", "--audio", voice, "-o",
        folder / "out.mp4", "--size", "64*64", "--segment", f"{SEGMENT_S}s", "--device", "cpu",
        "--workspace", folder / "jobs",
    ]  # fmt: skip
    assert lipcast([str(word) for word in words]) == 0


def first(folder: Path) -> SegmentTask:
    return SegmentTask(0, 0, SEGMENT_BLOCKS, None, folder / "first.mp4", folder / "first.past")


def last(folder: Path, estimate: JobEstimate, num_segments: int) -> SegmentTask:
    begin = (num_segments - 1) * SEGMENT_BLOCKS
    snapshot = replace(read_snapshot(folder / "first.past"), next_block=begin)
    write_snapshot(folder / "before.past", snapshot)
    return SegmentTask(
        num_segments - 1, begin, estimate.num_blocks, folder / "before.past",
        folder / "last.mp4", folder / "last.past",
    )  # fmt: skip


def rounded(report: Mapping[str, Any]) -> dict[str, Any]:
    return {"elapsed_s": 14.25, **report}


if __name__ == "__main__":
    main()
