"""`lipcast models`: which models are here, which of them are whole, and what fits this machine.

Output: a table, or one JSON document. Sizes and names are read; data only with --verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipcast.cli.command import Option, Section, command, switch
from lipcast.cli.console import Console
from lipcast.cli.fit_check import fit
from lipcast.cli.options import JSON_DEBUG
from lipcast.cli.types import FOLDER
from lipcast.config.models import Models
from lipcast.errors import CheckpointError, LipcastError
from lipcast.lab.driver import DriverCard, listed_cards
from lipcast.weights.checkpoint import ADAPTER_MODEL, EMBEDDED_MODELS, checkpoint_dir
from lipcast.weights.configs import read_configs
from lipcast.weights.hub import ModelStatus, list_models, model_status, verify_pulled
from lipcast.weights.manifest import read_manifest
from lipcast.weights.manifest import verify as verify_converted


@command(
    "models",
    (
        Option(
            "dir", "Folder whose subfolders are examined.",
            section=Section.FILES, type=FOLDER, show_default="where `lipcast pull` puts models",
        ),
        switch(
            "verify", "Hash the files of pulled and converted models and compare; reads them whole.",
            section=Section.FILES,
        ),
        *JSON_DEBUG,
    ),
    examples=("lipcast models", "lipcast models --dir ckpt --verify"),
)  # fmt: skip
def models(console: Console, *, dir: Path | None, verify: bool) -> None:
    """List models, what they lack, and what fits here.

    Every name can be given as --model. Nothing is loaded.
    """
    if dir is not None and not dir.is_dir():
        raise CheckpointError(f"--dir: {dir} is not a folder; give a folder of models")
    embedded = [model_status(checkpoint_dir(name), name) for name in EMBEDDED_MODELS]
    cards = listed_cards()
    rows = [describe(status, cards) for status in (*embedded, *list_models(dir))]
    if verify:
        _verify(rows)
    console.result({"models": rows}, _as_text(rows))
    broken = [row for row in rows if row["verified"] is False]
    if broken:
        raise CheckpointError("\n".join(row["problem"] for row in broken))


def describe(status: ModelStatus, cards: Sequence[DriverCard]) -> dict[str, Any]:
    """Return what is known of a model without reading its weights, as JSON values."""
    row: dict[str, Any] = {
        "name": status.name,
        "directory": str(status.directory),
        "state": _state(status),
        "bytes": status.num_bytes,
        "missing": list(status.missing),
        "precision": _precision(status.directory),
        "verified": None,
    }
    try:
        found = fit(_configs(status), cards)
        row |= {"fits": found.fits, "where": found.sentence}
    except LipcastError as error:
        row |= {"fits": None, "where": str(error)}
    return row


def _state(status: ModelStatus) -> str:
    if status.complete:
        return "complete"
    return "incomplete" if status.num_bytes else "not here"


def _precision(directory: Path) -> str | None:
    """Return the precision that a model was converted to; None for a model as published."""
    manifest = read_manifest(directory) if directory.is_dir() else None
    return None if manifest is None else str(manifest["recipe"].get("precision"))


def _configs(status: ModelStatus) -> Models:
    """Return the model's configurations; the published ones where its files are not here."""
    is_published = status.name == ADAPTER_MODEL and not (status.directory / "config.json").is_file()
    return Models() if is_published else read_configs(status.directory)


def _verify(rows: Sequence[dict[str, Any]]) -> None:
    """Mark models whose hashes are known as verified or damaged, with the reason."""
    for row in rows:
        directory = Path(row["directory"])
        try:
            if row["precision"] is not None:
                verify_converted(directory)
                row["verified"] = True
            elif verify_pulled(directory):
                row["verified"] = True
        except CheckpointError as error:
            row |= {"verified": False, "problem": str(error)}


def _as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for every model, and below it what is missing."""
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        size = f"{row['bytes'] / 1e9:.2f} GB" if row["bytes"] else ""
        state = row["state"] + {True: ", verified", False: ", DAMAGED"}.get(row["verified"], "")
        mark = {True: "fits", False: "too large", None: "unknown"}[row["fits"]]
        lines.append(f"{row['name']:<{width}}  {state:<20}{size:>10}  {mark}: {row['where']}")
        if row["state"] == "incomplete":
            lines += [f"{'':<{width}}  missing: {part}" for part in row["missing"]]
        if row["state"] == "not here":
            lines.append(f"{'':<{width}}  get it: lipcast pull {row['name']}")
    return "\n".join(lines)
