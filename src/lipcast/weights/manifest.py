"""`lipcast.json`: what a converted checkpoint says about itself, and whether it is still true.

Input: a directory. Output: the manifest, or None where the directory is no converted checkpoint.
The manifest is written last, so a directory that has one was finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lipcast.errors import CheckpointError
from lipcast.weights.disk import sha256_of

MANIFEST = "lipcast.json"
Manifest = dict[str, Any]
"""{"format", "recipe", "kept", "files": {name: {"bytes", "sha256", "layers"?}}}."""


def entry(num_bytes: int, digest: str, layers: Any = None) -> dict[str, Any]:
    """Return what the manifest says of one file; `layers`: errors of the layers quantised in it."""
    sizes: dict[str, Any] = {"bytes": num_bytes, "sha256": digest}
    return {**sizes, "layers": layers} if layers else sizes


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of `directory`; raises CheckpointError for a damaged one."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read; convert the checkpoint again") from error
    if not isinstance(manifest, dict) or not {"format", "recipe", "files"} <= manifest.keys():
        raise CheckpointError(f"{path}: is incomplete; convert the checkpoint again")
    return manifest


def verify(directory: Path) -> None:
    """Hash every file of a converted checkpoint; raises CheckpointError naming what differs."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise CheckpointError(f"{directory}: expected a converted checkpoint, found no {MANIFEST}")
    wrong = [
        name
        for name, known in manifest["files"].items()
        if not (directory / name).is_file() or sha256_of(directory / name) != known["sha256"]
    ]
    if wrong:
        listed = "\n".join(f"  {name}" for name in wrong)
        raise CheckpointError(
            f"{directory}: missing or changed since the conversion:\n{listed}\n"
            "Convert the checkpoint again into a new directory."
        )
