"""`lipcast-train all`, `report` and `gates`: train a model, measure it, compare it with another.

Input: a preset and a folder; reports. Output: the model's folder and a report; a verdict. The same command
goes on where the last one stopped.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lipcast.cli.command import Option, Section, command, switch
from lipcast.cli.console import Console
from lipcast.cli.options import CONSOLE, JSON_DEBUG
from lipcast.cli.types import FILE, FOLDER, SECONDS
from lipcast.errors import InputError, UsageError
from lipcast.weights.checkpoint import read_json
from lipcast.weights.disk import write_text

_PRESETS = ("smoke", "tiny")
_REPORT = "report.json"
_EVERY_S = 5.0
_SHORTEST_S = 4.0
"""Length of a video whose last second is not its first."""
_PRESET = Option(
    "preset", "Sizes and lengths: smoke (small enough for a CPU) or tiny (the embedded model's, one GPU).",
    type=click.Choice(_PRESETS), default="smoke", show_default=True,
)  # fmt: skip
_OUTPUT = Option(
    "output", "Folder of the states, the pictures and the finished model.",
    section=Section.FILES, also=("-o",), type=FOLDER, required=True,
)  # fmt: skip


@command(
    "all",
    (
        _PRESET,
        Option(
            "data", "Folder of videos with sound, to train on in place of drawn people.",
            section=Section.FILES, type=FOLDER, show_default="drawn people",
        ),
        _OUTPUT,
        Option(
            "device", 'Device: "cpu" or "cuda"; torchrun gives one to each process.',
            section=Section.COMPUTE, metavar="NAME", show_default="the first GPU, else the CPU",
        ),
        switch("bf16", "Compute in bf16 where that is safe.", section=Section.COMPUTE),
        Option(
            "max_time", "Stop after this time, such as 9min; the same command goes on later.",
            section=Section.COMPUTE, type=SECONDS, metavar="TIME", show_default="when finished",
        ),
        *CONSOLE,
    ),
    examples=(
        "lipcast-train all --preset smoke -o out/smoke",
        "lipcast-train all --preset tiny -o out/tiny --device cuda --bf16",
        "torchrun --nproc_per_node 4 -m lipcast_train.cli.main all --preset tiny -o out/tiny --bf16",
    ),
    when_stopped="the states are kept; the same command goes on from there",
)  # fmt: skip
def train(
    console: Console,
    *,
    preset: str,
    data: Path | None,
    output: Path,
    device: str | None,
    bf16: bool,
    max_time: float | None,
) -> None:
    """Train every network of a model, export it and measure it.

    What the phases are: docs/training.md.
    """
    from lipcast.engine.loading import read_device
    from lipcast_train.data.stamp import stamp_of
    from lipcast_train.presets import PRESETS
    from lipcast_train.run import train_all
    from lipcast_train.sources import open_source
    from lipcast_train.training.devices import open_devices
    from lipcast_train.training.loop import LoopSettings

    chosen = PRESETS[preset]
    with open_devices(read_device(device)) as devices:
        settings = LoopSettings(
            output,
            bf16=bf16,
            deadline=math.inf if max_time is None else time.monotonic() + max_time,
            report=_reporter(console) if devices.is_main else _silent,
        )
        source = open_source(chosen, data, devices.device)
        identity = "" if data is None else stamp_of(data)
        result = train_all(chosen, source, devices, settings, data_identity=identity)
    if not devices.is_main:
        return
    phases = {
        name: {"steps": done.step, "loss_factor": round(done.loss_factor, 3)}
        for name, done in result.phases.items()
    }
    document: dict[str, Any] = {"status": "stopped", "phases": phases}
    lines = [
        f"{n}: {p['steps']} steps, loss divided by {p['loss_factor']}" for n, p in phases.items()
    ]
    if result.is_finished:
        path = output / _REPORT
        is_known = path.exists() and not result.is_new
        measured = read_json(path) if is_known else _measure(result.model, preset, path)
        document |= {"status": "finished", "model": str(result.model), "report": measured}
        lines += [f"model: {result.model}", *_report_lines(measured)]
    console.result(document, "\n".join(lines))


@command(
    "report",
    (
        click.Argument(["model"], help="Model: a name, or the folder of a checkpoint."),
        _PRESET,
        Option(
            "output", "File of the report.",
            section=Section.FILES, also=("-o",), type=FILE, required=True,
        ),
        Option(
            "long", "Also measure how clips join, and the drift over a video of this length, such as 2min.",
            section=Section.VIDEO, type=SECONDS, metavar="TIME", show_default="single clips only",
        ),
        *JSON_DEBUG,
    ),
    examples=(
        "lipcast-train report tiny --preset tiny -o embedded.json",
        "lipcast-train report tiny --preset tiny --long 2min -o embedded.json",
    ),
)  # fmt: skip
def report(console: Console, *, model: str, preset: str, output: Path, long: float | None) -> None:
    """Measure a model on drawn people and voices that it was not trained on."""
    if long is not None and long < _SHORTEST_S:
        raise UsageError(f"long: expected at least {_SHORTEST_S:g} s, got {long:g} s")
    measured = _measure(model, preset, output, long_s=long)
    console.result(measured, "\n".join(_report_lines(measured)))


@command(
    "gates",
    (
        click.Argument(["old"], type=FILE, help="Report of the weights in use."),
        click.Argument(["new"], type=FILE, help="Report of the new weights."),
        *JSON_DEBUG,
    ),
    examples=("lipcast-train gates embedded.json out/tiny/report.json",),
)
def gates(console: Console, *, old: Path, new: Path) -> None:
    """Say whether new weights replace the ones in use: worse in nothing, better in something."""
    from lipcast_train.report import compare_reports

    reports = [read_json(path) for path in (old, new)]
    for path, content in zip((old, new), reports, strict=True):
        if not isinstance(content.get("average"), dict):
            raise InputError(
                f"{path}: is no report of `lipcast-train`; make one with `lipcast-train report`"
            )
    verdict = compare_reports(*reports)
    word = "better: replace the weights" if verdict.is_better else "not better: keep the weights"
    console.result(asdict(verdict), "\n".join([word, *verdict.reasons]))


def _measure(
    model: str | Path, preset: str, path: Path, *, long_s: float | None = None
) -> dict[str, Any]:
    from lipcast_train.presets import PRESETS
    from lipcast_train.report import measure_model
    from lipcast_train.sources import held_out_clips

    measured = measure_model(model, held_out_clips(PRESETS[preset]), long_s=long_s)
    write_text(path, json.dumps(measured, indent=1) + "\n")
    return measured


def _report_lines(measured: dict[str, Any]) -> list[str]:
    from lipcast_train.report import table_of

    return table_of(measured)


def _silent(_phase: str, _progress: Any, _num_steps: int) -> None:
    """Say nothing: the main process does."""


def _reporter(console: Console) -> Any:
    """Return what prints a line of progress every few seconds."""
    last = [0.0]

    def tell(phase: str, progress: Any, num_steps: int) -> None:
        now = time.monotonic()
        if now - last[0] < _EVERY_S and progress.step < num_steps:
            return
        last[0] = now
        recent = progress.losses[-10:]
        mean = sum(recent) / len(recent)
        console.log(f"{phase}: step {progress.step} of {num_steps}, loss {mean:.4f}")

    return tell
