"""`lipcast models`: which models are here, which of them are whole, and what fits this machine.

Output: a table, or one JSON document. Sizes and names are looked at, data is not, unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.fit_check import fit
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.validate import RawFlags
from lipcast.errors import CheckpointError, LipcastError
from lipcast.planning.plan import Models
from lipcast.weights.checkpoint import ADAPTER_MODEL, EMBEDDED_MODELS, checkpoint_dir
from lipcast.weights.configs import models_in
from lipcast.weights.hub import ModelStatus, list_models, model_status, verify_pulled
from lipcast.weights.manifest import read_manifest, verify

_SHARED = frozenset({"json", "debug"})
MODELS_FLAGS: tuple[Flag, ...] = (
    Flag(
        "dir",
        Group.FILES,
        Kind.TEXT,
        "The folder whose folders are looked at.",
        default="where `lipcast pull` puts models",
    ),
    Flag(
        "verify",
        Group.FILES,
        Kind.SWITCH,
        "Hash the files of pulled and converted models and compare; reads them whole.",
    ),
    *(flag for flag in FLAGS if flag.name in _SHARED),
)


def models(given: Mapping[str, RawFlags]) -> None:
    """List the models that are here, what is missing of them, and what fits this machine.

    Every name can be given as --model. Nothing is loaded.

        lipcast models

        lipcast models --dir ckpt --verify
    """
    talk = Console.begin(given)
    folder = Path(str(given["dir"])).expanduser() if "dir" in given else None
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"--dir: expected a folder of models, got {folder}, which is not one")
    embedded = [model_status(checkpoint_dir(name), name) for name in EMBEDDED_MODELS]
    rows = [describe(status) for status in (*embedded, *list_models(folder))]
    if given.get("verify"):
        _verify(rows)
    if talk.as_json:
        print_json({"models": rows})
    else:
        typer.echo(_as_text(rows))
    broken = [row for row in rows if row["verified"] is False]
    if broken:
        raise CheckpointError("\n".join(row["problem"] for row in broken))


def describe(status: ModelStatus) -> dict[str, Any]:
    """Everything that is known of one model without reading its weights, as JSON values."""
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
        found = fit(_configs(status))
        row |= {"fits": found.fits, "where": found.sentence}
    except LipcastError as error:
        row |= {"fits": None, "where": str(error)}
    return row


def _state(status: ModelStatus) -> str:
    if status.complete:
        return "complete"
    return "incomplete" if status.num_bytes else "not here"


def _precision(directory: Path) -> str | None:
    """What a converted model was converted to."""
    manifest = read_manifest(directory) if directory.is_dir() else None
    return None if manifest is None else str(manifest["recipe"].get("precision"))


def _configs(status: ModelStatus) -> Models:
    """The model's own configurations; of the published one, where its files are not here."""
    is_published = status.name == ADAPTER_MODEL and not (status.directory / "config.json").is_file()
    return Models() if is_published else models_in(status.directory)


def _verify(rows: Sequence[dict[str, Any]]) -> None:
    """Mark models whose hashes are known as verified or not, with what is wrong with them."""
    for row in rows:
        directory = Path(row["directory"])
        try:
            if row["precision"] is not None:
                verify(directory)
                row["verified"] = True
            elif verify_pulled(directory):
                row["verified"] = True
        except CheckpointError as error:
            row |= {"verified": False, "problem": str(error)}


def _as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for every model, and below it what is missing."""
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
