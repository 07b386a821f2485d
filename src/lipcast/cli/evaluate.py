"""`lipcast evaluate`: how good a video is, in numbers that are defined.

Input: a video, and beside it what it was made from. Output: a table on standard output, or one JSON
document with the curves. What cannot be measured is n/a, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.options import Positional, either_spelling, with_flags
from lipcast.cli.validate import RawFlags, Value, parse
from lipcast.errors import UsageError

if TYPE_CHECKING:
    from lipcast.lab.evaluate import Evaluation

BLOCK_FRAMES, CLIP_FRAMES = 12, 48
_FILES = ("audio", "reference", "against", "face_model", "syncnet", "identity")
_VIDEO = Positional("video", "The video to evaluate.")


def _flag(name: str, kind: Kind, text: str, default: str = "", *also: str) -> Flag:
    group = Group.TALK if kind is Kind.SWITCH else Group.FILES
    return Flag(name, group, kind, text, default=default, also=also)


EVALUATE_FLAGS: tuple[Flag, ...] = (
    _flag("audio", Kind.TEXT, "The sound it should follow.", "the video's own"),
    _flag("reference", Kind.TEXT, "The portrait it was made from."),
    _flag("against", Kind.TEXT, "Another run, to be compared frame by frame."),
    _flag("face_model", Kind.TEXT, "face_landmark.tflite, for landmarks on photos (lipcast[lab])."),
    _flag("syncnet", Kind.TEXT, "syncnet_v2.model, for SyncNet's figures; needs --face_model."),
    _flag(
        "identity",
        Kind.TEXT,
        "mobile_face_net.tflite, for the face's identity; needs --face_model.",
    ),
    _flag("infer_frames", Kind.WHOLE_VIDEO, "Frames of a clip.", str(CLIP_FRAMES)),
    _flag(
        "segment_frames", Kind.WHOLE_VIDEO, "Frames of a segment, where it was made in segments."
    ),
    _flag("append", Kind.TEXT, "Add the result to a file of results, for lipcast report."),
    _flag(
        "made_with", Kind.TEXT, 'Flags it was made with, for --append: "sample_steps=3 size=64*64".'
    ),
    _flag("json", Kind.SWITCH, "Print one JSON document, with the curves."),
    _flag("debug", Kind.SWITCH, "Show the traceback of an error."),
)


def evaluate(given: Mapping[str, RawFlags]) -> None:
    """Measure lip sync, motion, joins, drift and flicker of a video.

        lipcast evaluate out.mp4
        lipcast evaluate out.mp4 --reference me.png --against other.mp4
        lipcast evaluate out.mp4 --append quality.jsonl --made_with sample_steps=3

    What every number means: docs/lab.md.
    """
    from lipcast.lab.evaluate import EvaluationInput
    from lipcast.lab.evaluate import evaluate as measure
    from lipcast.lab.results import append_result, quality_record

    talk = Console.begin(given)
    values = {f.name: parse(f, given[f.name]) for f in EVALUATE_FLAGS if f.name in given}
    pieces = {"block": BLOCK_FRAMES, "clip": _count(values, "infer_frames") or CLIP_FRAMES}
    if segment := _count(values, "segment_frames"):
        pieces["segment"] = segment
    results, cell = _path(values, "append"), _made_with(values)
    files = {name: _path(values, name) for name in _FILES}
    found = measure(EvaluationInput(Path(str(given["video"])).expanduser(), pieces=pieces, **files))
    if results is not None:
        append_result(results, quality_record(found.document(), cell))
    if talk.as_json:
        print_json(found.document())
    else:
        typer.echo(table(found))


def register(app: typer.Typer) -> None:
    """Add the verb to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    verb = with_flags(EVALUATE_FLAGS, positional=_VIDEO)(evaluate)
    app.command("evaluate", context_settings=context)(verb)


def table(found: Evaluation) -> str:
    """Every metric in a line, grouped."""
    height, width = found.size
    lines = [
        f"{found.video}: {found.num_frames} frames of {width}x{height}, {found.fps:g} a second"
    ]
    group = ""
    for metric in found.metrics:
        if metric.group != group:
            group = metric.group
            lines += ["", group]
        best = {"higher": "higher is better", "lower": "lower is better", "zero": "0 is best"}
        remarks = [metric.note] if metric.note else []
        if metric.value is not None and metric.better in best and "best" not in metric.note:
            remarks.insert(0, best[metric.better])
        lines.append(f"  {metric.name:<30}{metric.text():<18}{'; '.join(remarks)}".rstrip())
    return "\n".join(lines)


def _made_with(values: Mapping[str, Value]) -> dict[str, Value]:
    """The flags a video was made with, each in its kind; `--infer_frames` is one of them."""
    if "made_with" in values and "append" not in values:
        raise UsageError("--made_with: expected --append beside it, got none")
    flags = {flag.name: flag for flag in FLAGS}
    cell: dict[str, Value] = {name: values[name] for name in ("infer_frames",) if name in values}
    for word in str(values.get("made_with", "")).replace(",", " ").split():
        name, _, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in flags or not value:
            raise UsageError(f"--made_with: expected flags of generate as name=value, got {word}")
        is_truth = flags[name].kind in {Kind.SWITCH, Kind.TOGGLE}
        flag = replace(flags[name], kind=Kind.TRUTH) if is_truth else flags[name]
        cell[name] = parse(flag, value)
    return cell


def _path(values: Mapping[str, Value], name: str) -> Path | None:
    return Path(str(values[name])).expanduser() if name in values else None


def _count(values: Mapping[str, Value], name: str) -> int | None:
    if name not in values:
        return None
    count = int(values[name])
    if count < 1:
        raise UsageError(f"--{name}: expected at least 1, got {count}")
    return count
