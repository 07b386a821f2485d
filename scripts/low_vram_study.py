"""Do the study of small GPUs with the embedded model, and write docs/low-vram-study.md from it.

Run from the root of the project: .venv/bin/python scripts/low_vram_study.py

Makes 96 frames of five portraits and four voices at each window, and of two voices at fewer steps, evaluates
them, sweeps `lipcast bench --preset low-vram-study`, and writes the page and out/low-vram-study/report.html.
Everything is kept in out/low-vram-study, and a run that was ended goes on where it was; with --fresh nothing
of before is used. Under an hour on two cores. The figures behind the page go to
benchmarks/low_vram_study.jsonl; with --write the page is written from those.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lipcast
from lipcast.cli.main import main as run_lipcast
from lipcast.lab.evaluate import EvaluationInput, evaluate
from lipcast.lab.results import (
    CellResult,
    append_result,
    by_cell,
    quality_record,
    read_results,
)
from lipcast.lab.stats import Interval, interval
from lipcast.lab.sync import lagged

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "low-vram-study.md"
TRACKS = ROOT / "tests" / "data"
FIGURES = ROOT / "benchmarks" / "low_vram_study.jsonl"
PORTRAITS = (0, 2, 3, 4, 5)
"""Portrait 1 has a beard, which hides the mouth from the model."""
VOICES = ("speech_a_male", "speech_b_male", "speech_c_female", "speech_d_female")
TRACKED = ("speech_b_male", "speech_d_female")
"""Voices whose mouth was drawn: the track is in the examples."""
CELLS = ((48, 4, VOICES), (32, 4, VOICES), (24, 4, VOICES), (48, 3, TRACKED), (48, 2, TRACKED))
NUM_FRAMES, SHIFT, MIB = 96, 4, 2**20
TABLE = (
    ("lip sync", "correlation"),
    ("lip sync", "offset"),
    ("motion", "dynamic degree"),
    ("motion", "head jerk"),
    ("motion", "frozen frames"),
    ("joins", "block rank"),
    ("joins", "clip rank"),
    ("drift", "colour drift"),
    ("drift", "likeness to the portrait"),
    ("flicker", "pixel flicker"),
)
KEPT = (
    "kind", "cell", "repeat", "status", "reason", "command", "started", "load_before", "wall_s",
    "document",
)  # fmt: skip
SHOWN = ("portrait_0", "speech_d_female")
"""Portrait and voice of the videos that are on the report."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "low-vram-study")
    parser.add_argument(
        "--write", action="store_true", help="only write the page, from the figures"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew: forget earlier runs")
    options = parser.parse_args()
    if not options.write:
        if options.fresh:
            shutil.rmtree(options.out, ignore_errors=True)
        measure(options.out)
    PAGE.write_text(page(read_results([FIGURES])), "utf-8")


def measure(out: Path) -> None:
    """Videos, their evaluations, the sweep and the report; then the figures behind the page."""
    began, clips = time.time(), out / "clips"
    bench, quality = out / "bench.jsonl", out / "quality.jsonl"
    clips.mkdir(parents=True, exist_ok=True)
    make_videos(clips)
    measure_videos(clips, quality)
    sweep = ["--preset", "low-vram-study", "--num_blocks", "3", "--resume"]
    if run_lipcast(["bench", *sweep, "--results", str(bench)]):
        sys.exit("the sweep could not be run")
    shown = [
        str(clips / name) for *_, portrait, voice, name in videos() if (portrait, voice) == SHOWN
    ]
    if run_lipcast(["report", str(bench), str(quality), *shown, "-o", str(out / "report.html")]):
        sys.exit("the report could not be written")
    judged = [summary(record) for record in read_results([quality])]
    kept = [*compact(read_results([bench])), *judged, run_record(began)]
    FIGURES.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")


def run_record(began: float) -> dict[str, Any]:
    """When the whole was run, and how long it took."""
    day = time.strftime("%Y-%m-%d", time.gmtime(began))
    minutes = round((time.time() - began) / 60)
    return {"kind": "run", "day": day, "minutes": minutes, "cores": os.cpu_count()}


def videos() -> Iterator[tuple[int, int, str, str, str]]:
    """Window, steps, portrait, voice and the name of every video."""
    for window, steps, voices in CELLS:
        for voice in voices:
            for number in PORTRAITS:
                portrait = f"portrait_{number}"
                yield window, steps, portrait, voice, f"{portrait}-{voice}-{window}f-{steps}s.mp4"


def make_videos(folder: Path) -> None:
    """Those that are not there yet."""
    missing = [video for video in videos() if not (folder / video[-1]).exists()]
    if not missing:
        return
    model = lipcast.load("tiny", device="cpu")
    for window, steps, portrait, voice, name in missing:
        print(name, file=sys.stderr)
        made = model.generate(
            image=EXAMPLES / f"{portrait}.png",
            audio=EXAMPLES / f"{voice}.wav",
            prompt="a person is talking, calm",
            num_clip=NUM_FRAMES // window,
            infer_frames=window,
            sample_steps=steps,
            schedule="wavefront",
        )
        made.save(folder / "unfinished.mp4")
        (folder / "unfinished.mp4").replace(folder / name)


def measure_videos(folder: Path, results: Path) -> None:
    """Evaluate those that were not yet, a line each."""
    done = (
        {r["evaluation"]["video"] for r in read_results([results])} if results.exists() else set()
    )
    for window, steps, portrait, voice, name in videos():
        if name in done:
            continue
        document = evaluate(
            EvaluationInput(
                folder / name,
                audio=EXAMPLES / f"{voice}.wav",
                reference=EXAMPLES / f"{portrait}.png",
                pieces={"block": 12, "clip": window},
            )
        ).document()
        cell = {"infer_frames": window, "sample_steps": steps}
        record = quality_record(document | {"video": name}, cell)
        append_result(results, record | {"portrait": portrait, "voice": voice})


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation in a few numbers."""
    evaluation = record["evaluation"]
    values = {f"{m['group']}: {m['name']}": m["value"] for m in evaluation["metrics"]}
    found = {name: round(value, 5) for name, value in values.items() if value is not None}
    mouth, voice = (np.array(evaluation["curves"][name]) for name in ("mouth", "loudness"))
    lags = lagged(mouth, voice)
    found["shifted"] = round((lags[SHIFT] + lags[-SHIFT]) / 2, 5)
    if record["voice"] in TRACKED:
        track = np.load(TRACKS / f"{record['voice']}_mouth_open.npy")[: len(mouth)]
        found["track"] = round(float(np.corrcoef(mouth[: len(track)], track)[0, 1]), 5)
    names = ("kind", "cell", "portrait", "voice")
    return {name: record[name] for name in names} | {"values": found}


def compact(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records of the sweep without their memory over time."""
    for record in records:
        yield {name: record[name] for name in KEPT if name in record}


def values_of(judged: Sequence[Mapping[str, Any]], cell: tuple[int, int], name: str) -> dict:
    """One value of a cell by portrait and voice."""
    asked = {"infer_frames": cell[0], "sample_steps": cell[1]}
    return {
        (r["portrait"], r["voice"]): r["values"][name]
        for r in judged
        if r["cell"] == asked and name in r["values"]
    }


def mean(judged: Sequence[Mapping[str, Any]], cell: tuple[int, int], name: str) -> Interval:
    return interval(list(values_of(judged, cell, name).values()))


def difference(judged: Sequence[Mapping[str, Any]], cell: tuple[int, int], name: str) -> Interval:
    """Of a cell to 48 frames and 4 steps, portrait by portrait and voice by voice."""
    return paired(judged, cell, (48, 4), name)


def paired(
    judged: Sequence[Mapping[str, Any]], cell: tuple[int, int], than: tuple[int, int], name: str
) -> Interval:
    base, other = values_of(judged, than, name), values_of(judged, cell, name)
    return interval([other[key] - base[key] for key in other if key in base])


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, from the figures that are kept beside the benchmarks."""
    cells, judged = by_cell(records), [r for r in records if r["kind"] == "quality"]
    template = (ROOT / "scripts" / "low_vram_study.in.md").read_text("utf-8")
    places = {
        "BENCH": bench_table(cells),
        "REFUSED": refused(cells),
        "CONDITIONS": conditions(cells),
        "QUALITY": quality_table(judged),
        "ORDER": order_table(judged),
        "WINDOWS": window_order(judged),
        "RUN": run_sentence(records, cells),
        "SYNC": sync_table(judged),
    }
    for name, text in places.items():
        template = template.replace(f"{{{name}}}", text)
    return template


def rows(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def bench_table(cells: Sequence[CellResult]) -> str:
    lines = []
    for cell in (cell for cell in cells if cell.good):
        spread = {n: cell.spread(n) for n in ("cpu_s", "frames_per_s", "first_frame_s")}
        rss, predicted = cell.spread("peak_rss"), cell.spread("predicted")
        texts = [found.text() if found else "n/a" for found in spread.values()]
        sizes = [f"{s.median / MIB:.0f}" if s else "n/a" for s in (rss, predicted)]
        flags = [str(cell.cell[name]) for name in ("infer_frames", "sample_steps")]
        lines.append([*flags, *texts, *sizes, str(len(cell.good))])
    heads = ["window", "steps", "processor s per block", "frames/s", "first frame, s"]
    heads += ["peak RSS, MiB", "predicted, MiB", "processes"]
    return rows(heads, lines)


def refused(cells: Sequence[CellResult]) -> str:
    bad = [cell for cell in cells if not cell.good]
    reasons = dict.fromkeys(cell.status for cell in bad)
    return f"{len(bad)} of {len(cells)} cells have no figures. " + "; ".join(reasons) + "."


def conditions(cells: Sequence[CellResult]) -> str:
    good = [record for cell in cells for record in cell.good]
    what = good[0]["document"]["conditions"]
    return (
        f"{what['cpu']}, {what['num_threads']} thread, {what['precision']}, torch {what['torch']}, "
        f"Python {what['python']}, {min(r['started'] for r in good)[:10]}"
    )


def quality_table(judged: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{group}: {name}" for group, name in TABLE]
    lines = [
        [name, *(mean(judged, (window, steps), name).text() for window, steps, _ in CELLS)]
        for name in names
    ]
    return rows(["metric", *(f"{w} frames, {s} steps" for w, s, _ in CELLS)], lines)


def order_table(judged: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for window, steps, _ in CELLS[1:]:
        cell = (window, steps)
        found = [difference(judged, cell, name) for name in ("lip sync: correlation", "track")]
        lines.append([f"{window} frames, {steps} steps", *(each.text() for each in found)])
    heads = ["against 48 frames, 4 steps", "correlation with loudness", "with the drawn track"]
    return rows(heads, lines)


def window_order(judged: Sequence[Mapping[str, Any]]) -> str:
    """Each step of 48 >= 32 >= 24 by two measures, and what it says."""
    lines = []
    for longer, shorter in ((48, 32), (32, 24), (48, 24)):
        for measure, name in (("loudness", "lip sync: correlation"), ("drawn track", "track")):
            found = paired(judged, (longer, 4), (shorter, 4), name)
            lines.append([f"{longer} less {shorter} frames", measure, found.text(), verdict(found)])
    return rows(["4 steps", "correlation with", "difference", "says"], lines)


def verdict(difference: Interval) -> str:
    if difference.low > 0:
        return "the longer window is better"
    if difference.high < 0:
        return "the shorter window is better"
    return "cannot be told apart"


def run_sentence(records: Sequence[Mapping[str, Any]], cells: Sequence[CellResult]) -> str:
    """When, how long, and what else the machine did."""
    run = next(record for record in records if record["kind"] == "run")
    loads = [record["load_before"] for cell in cells for record in cell.good]
    return (
        f"The whole was run by that command on {run['day']} in {run['minutes']} minutes on "
        f"{run['cores']} cores, beside other programs: the load average before the processes of the "
        f"sweep was {min(loads):.1f} to {max(loads):.1f}."
    )


def sync_table(judged: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{window} frames, {steps} steps",
            *(mean(judged, (window, steps), n).text() for n in
              ("lip sync: correlation", "shifted", "track")),
        ]
        for window, steps, _ in CELLS
    ]  # fmt: skip
    return rows(["", "loudness", f"sound shifted by {SHIFT} frames", "drawn track"], lines)


if __name__ == "__main__":
    main()
