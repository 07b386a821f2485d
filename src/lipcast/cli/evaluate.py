"""`lipcast evaluate`: how good a video is, in numbers that are defined.

Input: a video, and beside it what it was made from. Output: a table on standard output, or one JSON
document with the curves. What cannot be measured is n/a, with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipcast.cli.characters import CHARACTER, read_characters
from lipcast.cli.command import Option, Section, as_arguments, command
from lipcast.cli.console import Console
from lipcast.cli.generate import generate
from lipcast.cli.options import JSON_DEBUG
from lipcast.cli.types import COUNT, FILE
from lipcast.errors import UsageError

if TYPE_CHECKING:
    from lipcast.lab.evaluate import Evaluation

BLOCK_FRAMES, CLIP_FRAMES = 12, 48


def _file(name: str, help: str, **attributes: Any) -> Option:
    return Option(name, help, section=Section.FILES, type=FILE, **attributes)


@command(
    "evaluate",
    (
        click.Argument(["video"], type=FILE, help="Video to evaluate."),
        _file("audio", "Audio that the lips should follow.", show_default="the video's own"),
        _file("reference", "Portrait that the video was made from."),
        CHARACTER,
        _file("against", "Another video, to compare frame by frame."),
        _file(
            "face_model", "Another face mesh model (.tflite) for landmarks.",
            show_default="MediaPipe's, with lipcast[lab]",
        ),
        _file("syncnet", "syncnet_v2.model, for SyncNet's figures; needs lipcast[lab]."),
        _file("identity", "mobile_face_net.tflite, for the face's identity; needs lipcast[lab]."),
        Option(
            "infer_frames", "Frames of a clip.",
            section=Section.VIDEO, type=COUNT, metavar="N", show_default=str(CLIP_FRAMES),
        ),
        Option(
            "segment_frames", "Frames of a segment, for a video made in segments.",
            section=Section.VIDEO, type=COUNT, metavar="N",
        ),
        _file("append", "File of results to add this result to, for `lipcast report`."),
        Option(
            "made_with", 'Flags that the video was made with, for --append: "sample_steps=3 size=64*64".',
            section=Section.FILES, metavar="FLAGS",
        ),
        *JSON_DEBUG,
    ),
    examples=(
        "lipcast evaluate out.mp4",
        "lipcast evaluate out.mp4 --reference me.png --against other.mp4",
        "lipcast evaluate out.mp4 --reference two.png --character face1:anna.wav \\\n"
        "    --character face2:ben.wav",
        "lipcast evaluate out.mp4 --append quality.jsonl --made_with sample_steps=3",
    ),
)  # fmt: skip
def evaluate(
    console: Console,
    *,
    video: Path,
    append: Path | None,
    made_with: str | None,
    infer_frames: int | None,
    segment_frames: int | None,
    character: tuple[str, ...],
    **files: Path | None,
) -> None:
    """Measure lip sync, motion, drift and flicker.

    What every number means: docs/lab.md.
    """
    from lipcast.lab.evaluate import EvaluationInput
    from lipcast.lab.evaluate import evaluate as measure
    from lipcast.lab.results import append_result, quality_record

    if made_with is not None and append is None:
        raise UsageError("--made_with: needs --append FILE beside it")
    cell = {} if infer_frames is None else {"infer_frames": infer_frames}
    cell |= _made_with(made_with or "")
    pieces = {"block": BLOCK_FRAMES, "clip": infer_frames or CLIP_FRAMES}
    if segment_frames is not None:
        pieces["segment"] = segment_frames
    characters = read_characters({"character": character})
    found = measure(EvaluationInput(video, pieces=pieces, characters=characters, **files))
    if append is not None:
        append_result(append, quality_record(found.document(), cell))
    console.result(found.document(), table(found))


def _made_with(text: str) -> dict[str, Any]:
    """Return the flags that a video was made with, in their types. Raises UsageError."""
    words: dict[str, str] = {}
    for word in text.replace(",", " ").split():
        name, _, value = word.removeprefix("--").partition("=")
        if not value:
            raise UsageError(f"--made_with: expected flags of generate as name=value, got {word}")
        words[name.replace("-", "_")] = value
    try:
        return generate.parse(as_arguments(generate, words))
    except (UsageError, click.UsageError) as error:
        reason = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise UsageError(
            f"--made_with: expected flags of generate as name=value; {reason}"
        ) from error


def table(found: Evaluation) -> str:
    """Return every metric in a line, grouped."""
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
