"""Choose the adapters that are merged into a checkpoint's transformer.

Input: the files of a checkpoint and adapters as `path:weight` or `LoraSpec`. Output: the list to
merge, in order: the published adapter first, where it lies beside the weights. An adapter that a
conversion has merged already is not merged again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lipcast.env import logger
from lipcast.errors import CheckpointError
from lipcast.weights.checkpoint import (
    ADAPTER_MODEL,
    ADAPTER_NAME,
    ADAPTER_REPOSITORY,
    CheckpointFiles,
    models_dir,
)
from lipcast.weights.disk import sha256_of
from lipcast.weights.files import PTH_SUFFIXES
from lipcast.weights.lora import LoraSpec, parse_lora
from lipcast.weights.manifest import read_manifest

_NAMES = (
    ADAPTER_NAME, "adapter_model.safetensors", "pytorch_lora_weights.safetensors",
    "adapter_model.bin", "pytorch_lora_weights.bin",
)  # fmt: skip
"""File names of an adapter in the folder of a trainer; the first that is there counts."""
_SUFFIXES = (".safetensors", *PTH_SUFFIXES)

_log = logger("weights.adapters")


def adapters_of(files: CheckpointFiles, wanted: Iterable[str | LoraSpec]) -> tuple[LoraSpec, ...]:
    """Return what to merge. Naming the published adapter again changes its weight, and no more.

    A path may be a folder that holds one adapter, or the name of the public repository.
    Raises UsageError for what cannot be read, CheckpointError for a file that is not there.
    """
    specs = [_found(files, parse_lora(w) if isinstance(w, str) else w) for w in wanted]
    published = files.adapter
    if published is not None and not any(spec.path.samefile(published) for spec in specs):
        specs.insert(0, LoraSpec(published))
    return tuple(spec for spec in specs if not _merged_before(files, spec))


def adapter_file(path: Path) -> Path:
    """Return the adapter that a path names: a file, or the only adapter in a folder.

    Raises CheckpointError where there is none, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: expected an adapter (LoRA), found nothing there; check the path, "
            f"or `lipcast pull {ADAPTER_MODEL}` for the published one"
        )
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    found = [file for suffix in _SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(
            f"{path}: expected one adapter (LoRA) in this folder, found {names}; "
            "name the file to merge"
        )
    return found[0]


def _found(files: CheckpointFiles, spec: LoraSpec) -> LoraSpec:
    path = spec.path.expanduser()
    if spec.path.as_posix() == ADAPTER_REPOSITORY and not path.exists():
        path = _published(files)
    return replace(spec, path=adapter_file(path))


def _published(files: CheckpointFiles) -> Path:
    """Return the adapter of the public repository: beside the weights, or pulled."""
    return files.adapter or models_dir() / ADAPTER_MODEL / ADAPTER_NAME


def _merged_before(files: CheckpointFiles, spec: LoraSpec) -> bool:
    """Return whether a conversion merged this file; raises CheckpointError if with another weight."""
    manifest = read_manifest(files.directory)
    recipe = manifest["recipe"] if manifest else {}
    merged = [lora for lora in recipe.get("loras", ()) if lora["file"] == spec.path.name]
    if not merged:
        return False
    hashes = {source["sha256"] for source in recipe.get("sources", ())}
    if sha256_of(spec.path) not in hashes:
        return False
    if spec.weight not in {lora["weight"] for lora in merged}:
        raise CheckpointError(
            f"{spec.path}: was merged with weight {merged[0]['weight']} when {files.directory} was "
            f"converted, got weight {spec.weight}; convert the original checkpoint with this weight"
        )
    _log.warning("%s: merged already when %s was converted", spec.path.name, files.directory)
    return True
