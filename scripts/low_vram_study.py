"""Do the study of small GPUs with the embedded model, and write docs/low-vram-study.md from it.

Run from the root of the project: .venv/bin/python scripts/low_vram_study.py

Sweeps `lipcast bench --preset low-vram-study`, makes 96 frames of five portraits and four voices at each
window, and of two voices at fewer steps, evaluates them, and writes the page. Everything is kept in
out/low-vram-study, and a second run makes only what is missing; about an hour on two cores. The figures
behind the page go to benchmarks/low_vram_study.jsonl; with --write the page is written from those.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lipcast
from lipcast.cli.main import main as run_lipcast
from lipcast.lab.evaluate import Question, evaluate
from lipcast.lab.results import CellResult, by_cell, read_results
from lipcast.lab.stats import Interval, interval
from lipcast.lab.sync import lagged

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "low-vram-study.md"
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
KEPT = ("kind", "cell", "repeat", "status", "reason", "command", "started", "wall_s", "document")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "low-vram-study")
    parser.add_argument(
        "--write", action="store_true", help="only write the page, from the figures"
    )
    options = parser.parse_args()
    bench, quality = options.out / "bench.jsonl", options.out / "quality.jsonl"
    if not options.write:
        (options.out / "clips").mkdir(parents=True, exist_ok=True)
        make_videos(options.out / "clips")
        judge_videos(options.out / "clips", quality)
        sweep = ["--preset", "low-vram-study", "--num_blocks", "3", "--resume"]
        if run_lipcast(["bench", *sweep, "--results", str(bench)]):
            sys.exit("the sweep could not be run")
        judged = [summary(record) for record in read_results([quality])]
        kept = [*compact(read_results([bench])), *judged]
        FIGURES.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
    PAGE.write_text(page(read_results([FIGURES])), "utf-8")


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


def judge_videos(folder: Path, results: Path) -> None:
    """Evaluate those that were not yet, a line each."""
    done = (
        {r["evaluation"]["video"] for r in read_results([results])} if results.exists() else set()
    )
    for window, steps, portrait, voice, name in videos():
        if name in done:
            continue
        document = evaluate(
            Question(
                folder / name,
                audio=EXAMPLES / f"{voice}.wav",
                reference=EXAMPLES / f"{portrait}.png",
                pieces={"block": 12, "clip": window},
            )
        ).document()
        cell = {"infer_frames": window, "sample_steps": steps}
        record = {"kind": "quality", "cell": cell, "portrait": portrait, "voice": voice}
        record["evaluation"] = document | {"video": name}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation in a few numbers."""
    evaluation = record["evaluation"]
    values = {f"{m['group']}: {m['name']}": m["value"] for m in evaluation["metrics"]}
    found = {name: round(value, 5) for name, value in values.items() if value is not None}
    mouth, voice = (np.array(evaluation["curves"][name]) for name in ("mouth", "loudness"))
    lags = lagged(mouth, voice)
    found["shifted"] = round((lags[SHIFT] + lags[-SHIFT]) / 2, 5)
    if record["voice"] in TRACKED:
        track = np.load(EXAMPLES / f"{record['voice']}_mouth_open.npy")[: len(mouth)]
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
    base, other = values_of(judged, (48, 4), name), values_of(judged, cell, name)
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
