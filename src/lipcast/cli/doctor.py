"""`lipcast doctor`: whether `lipcast generate` would run here, line by line.

Output: a line for everything looked at, or one JSON document. The exit code is 0 where a video of
the model could be made, else 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import click

from lipcast.cli.command import command
from lipcast.cli.console import Console, print_json
from lipcast.cli.fit_check import fit
from lipcast.cli.options import JSON_DEBUG, MODEL
from lipcast.cli.request import DEFAULT_MODEL
from lipcast.errors import LipcastError
from lipcast.lab.doctor import Finding, examine
from lipcast.lab.driver import DriverCard, listed_cards
from lipcast.weights.checkpoint import (
    MODEL_PARTS,
    TEXT_PARTS,
    checkpoint_dir,
    find_checkpoint,
    model_name,
)
from lipcast.weights.configs import read_configs
from lipcast.weights.hub import list_models

_MARKS: Mapping[str, str] = {"ok": "OK", "warning": "warning", "problem": "PROBLEM"}


@command(
    "doctor",
    (MODEL, *JSON_DEBUG),
    examples=("lipcast doctor", "lipcast doctor --ckpt_dir ckpt/Wan2.2-S2V-14B --json"),
)
def doctor(console: Console, *, model: str | None) -> None:
    """Check whether videos can be made on this machine.

    Looks at Python, torch, GPU, FFmpeg, memory and model files.

    Each line is OK, a warning, or a problem, with what to do. The exit code is 0 where
    `lipcast generate` with this model would run. With a GPU, its link is measured.
    """
    name = model or DEFAULT_MODEL
    findings = []
    cards = listed_cards()
    for finding in (*examine(cards), *_model(name, cards), *_others(name)):
        findings.append(finding)
        if not console.as_json:
            click.echo(_line(finding))
    runs = not any(finding.status == "problem" for finding in findings)
    if console.as_json:
        print_json({"runs": runs, "model": name, "findings": [asdict(f) for f in findings]})
    else:
        would = "would run" if runs else "would not run; see PROBLEM above"
        click.echo(f"\nlipcast generate --model {name}: {would}")
    if not runs:
        raise click.exceptions.Exit(1)


def _line(finding: Finding) -> str:
    advice = f"\n{'':<26}-> {finding.advice}" if finding.advice else ""
    found = finding.found.replace("\n", f"\n{'':<26}")
    return f"{_MARKS[finding.status]:<9}{finding.topic:<16} {found}{advice}"


def _model(model: str, cards: Sequence[DriverCard]) -> Iterator[Finding]:
    """Check that all parts of the model are there, have whole headers, and fit."""
    try:
        directory = checkpoint_dir(model)
        files = find_checkpoint(directory, need=MODEL_PARTS)
        configs = read_configs(directory)
        _open(files.dit, files.vae, files.text)
    except LipcastError as error:
        yield Finding("model", "problem", str(error), "the message says which file, and what to do")
        return
    except ImportError as error:
        yield Finding("model", "problem", f"files cannot be opened: {error}", "install torch")
        return
    yield Finding("model", "ok", f"{model}: every part is there, headers are whole")
    if any(part in files.missing for part in TEXT_PARTS):
        advice = "make prompts elsewhere with `lipcast encode-prompt`, or pull the rest"
        yield Finding("text encoder", "warning", "not in this checkpoint", advice)
    found = fit(configs, cards)
    advice = "" if found.fits else "a smaller --precision, --size or --infer_frames; `lipcast plan`"
    yield Finding("fits", "ok" if found.fits else "problem", found.sentence, advice)


def _open(*paths: object) -> None:
    """Read the headers of weight files; raises CheckpointError for a damaged one."""
    from lipcast.weights.files import open_tensors

    for path in paths:
        if path is not None:
            open_tensors(str(path))


def _others(model: str) -> Iterator[Finding]:
    """Report pulled and converted models that are incomplete."""
    for status in list_models():
        if status.num_bytes and not status.complete and status.name != model_name(model):
            found = f"{status.name} is incomplete: {len(status.missing)} files are missing"
            advice = f"`lipcast pull {status.name}` continues, `lipcast models` lists them"
            yield Finding("other model", "warning", found, advice)
