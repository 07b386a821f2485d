"""Converting a checkpoint: adapters merged, weights quantised, one directory that loads by mapping.

Input: a checkpoint directory, a precision, adapters. Output: a directory of the same layout. Memory
holds one tensor at a time. The work is done in `<out>.partial`, which becomes `<out>` in one step
when everything is there; killed at any moment, the next run continues after the last finished file
and makes the same bytes. `lipcast.json` in the result says what it was made from and how.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lipcast.config.precision import StoredPrecision
from lipcast.errors import OutputError
from lipcast.weights.adapters import adapters_of
from lipcast.weights.checkpoint import DIT_NAME, CheckpointFiles, find_checkpoint
from lipcast.weights.configs import read_configs
from lipcast.weights.disk import TEMPORARY, output_error, sha256_of, write_text
from lipcast.weights.files import open_tensors
from lipcast.weights.lora import LoraSpec, merge_loras
from lipcast.weights.manifest import MANIFEST, Manifest, entry, read_manifest
from lipcast.weights.networks import open_dit, open_text
from lipcast.weights.quant import KEPT_LAYERS, NOT_A_MATRIX, QuantisedSource, quantised
from lipcast.weights.shards import SetWriter
from lipcast.weights.source import QWEIGHT, TensorInfo, TensorSource

FORMAT = 1
"""Changes when the same recipe would give other bytes."""
SHARD_BYTES = 2 << 30
_PROGRESS = ".progress"

Progress = Callable[[str, int, int], None]
"""(what is going on, bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """A conversion that is asked for.

    `loras` are merged after the published adapter, which is merged where it lies beside the weights.
    `text_precision` None: the text encoder stays as it is.
    """

    source: Path
    out: Path
    precision: StoredPrecision
    loras: tuple[LoraSpec, ...] = ()
    text_precision: StoredPrecision | None = None
    shard_bytes: int = SHARD_BYTES


def convert(request: ConvertRequest, *, progress: Progress = lambda *_: None) -> Manifest:
    """Make `request.out`, unless it is there already, and return its manifest.

    Raises CheckpointError for a source or adapter that cannot be used, OutputError where the result
    cannot be written.
    """
    files = find_checkpoint(request.source, need=("config", "dit"))
    loras = adapters_of(files, request.loras)
    sets = _open_sets(request, files, loras)
    recipe = _recipe(request, sets, loras, progress)
    if request.out.exists():
        return _finished_before(request.out, recipe)
    work = _start(request.out, recipe)
    plain = _plain_files(files, sets)
    _check_space(work, sets, plain)
    entries = _write_sets(request, sets, work, recipe=recipe, progress=progress)
    entries |= dict(_place_plain(work, plain))
    manifest = {"format": FORMAT, "recipe": recipe, "kept": _kept_table(), "files": entries}
    write_text(work / MANIFEST, json.dumps(manifest, indent=1))
    _finish(work, request.out)
    return manifest


@dataclass(frozen=True, slots=True)
class _Set:
    """One network to convert: its tensors as they shall be, and the name of its files."""

    stem: str
    source: TensorSource


def _open_sets(
    request: ConvertRequest, files: CheckpointFiles, loras: Sequence[LoraSpec]
) -> list[_Set]:
    assert files.dit is not None
    configs = read_configs(files.directory)
    merged = merge_loras(open_dit(files.dit, configs.dit), loras)
    sets = [_Set(DIT_NAME, quantised(merged, request.precision))]
    if request.text_precision and files.text:
        text = quantised(open_text(files.text, configs.text), request.text_precision)
        sets.append(_Set(f"models_t5_umt5-enc-{request.text_precision}", text))
    return sets


def _recipe(
    request: ConvertRequest,
    sets: Sequence[_Set],
    loras: Sequence[LoraSpec],
    progress: Progress,
) -> dict[str, Any]:
    """Return everything that the result's bytes depend on."""
    sources = [path for s in sets for path in s.source.files]
    total = sum(path.stat().st_size for path in sources)
    hashes, done = [], 0
    for path in sources:
        progress("reading", done, total)
        hashes.append({"file": path.name, "sha256": sha256_of(path)})
        done += path.stat().st_size
    return {
        "version": _version(),
        "precision": request.precision,
        "text_precision": request.text_precision,
        "shard_bytes": request.shard_bytes,
        "loras": [
            {"file": lora.path.name, "weight": lora.weight, "alpha": lora.alpha} for lora in loras
        ],
        "sources": hashes,
    }


def _version() -> str:
    try:
        return version("lipcast")
    except PackageNotFoundError:
        return "source checkout"


def _finished_before(out: Path, recipe: Mapping[str, Any]) -> Manifest:
    """Return the manifest of an `out` that is exactly what was asked for."""
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest is None:
        raise OutputError(f"{out}: exists and is no converted checkpoint; choose another directory")
    if manifest["recipe"] != recipe:
        raise OutputError(
            f"{out}: exists and was converted from something else or in another way; "
            "remove it or choose another directory"
        )
    _remove_progress(out)
    return manifest


def _start(out: Path, recipe: Mapping[str, Any]) -> Path:
    """Return the directory to work in, with what an earlier run of the same recipe left there."""
    work = out.with_name(f"{out.name}.partial")
    marker = work / _PROGRESS / "recipe.json"
    text = json.dumps(recipe)
    try:
        if work.exists() and not marker.parent.is_dir():
            raise OutputError(f"{work}: is in the way and not from a conversion; remove it")
        if marker.is_file() and marker.read_text(encoding="utf-8") != text:
            shutil.rmtree(work)
        marker.parent.mkdir(parents=True, exist_ok=True)
        for left in work.rglob(f"*{TEMPORARY}"):
            left.unlink()
        write_text(marker, text)
    except OSError as error:
        raise output_error(work, error) from error
    return work


def _plain_files(files: CheckpointFiles, sets: Sequence[_Set]) -> dict[str, Path]:
    """{name in the result: file} of everything that is taken over as it is."""
    converted = {path for s in sets for path in s.source.files}
    parts = (
        files.config, files.vae, files.text, files.tokenizer, files.speech,
        files.vae_config, files.text_config,
    )  # fmt: skip
    found = [path for part in parts if part is not None for path in _files_of(part)]
    return {
        path.relative_to(files.directory).as_posix(): path
        for path in found
        if path not in converted
    }


def _files_of(part: Path) -> Iterator[Path]:
    if part.is_dir():
        yield from (path for path in sorted(part.rglob("*")) if path.is_file())
    elif part.suffix == ".json" and part.name.endswith(".index.json"):
        yield from open_tensors(part).files
    else:
        yield part


def _check_space(work: Path, sets: Sequence[_Set], plain: Mapping[str, Path]) -> None:
    """Refuse before the first byte; what an earlier run wrote counts as written."""
    total = sum(s.source.num_bytes for s in sets) + sum(p.stat().st_size for p in plain.values())
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free
    if total - there > free:
        raise OutputError(
            f"{work}: the result needs {(total - there) / 1e9:.1f} GB more, the disk has "
            f"{free / 1e9:.1f} GB free; free some space or choose another directory"
        )


def _write_sets(
    request: ConvertRequest,
    sets: Sequence[_Set],
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Write all sets; the manifest's entries of their files."""
    total, done = sum(s.source.num_bytes for s in sets), 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("writing", min(done, total), total)

    entries: dict[str, Any] = {}
    for part in sets:
        writer = SetWriter(
            folder=folder,
            records=folder / _PROGRESS,
            stem=part.stem,
            recipe=json.dumps(recipe),
            shard_bytes=request.shard_bytes,
            notes=partial(_reports, part.source),
        )
        records = writer.write(part.source, advance)
        index = writer.index_path
        entries |= {r["file"]: entry(r["bytes"], r["sha256"], r["notes"]) for r in records}
        entries[index.name] = entry(index.stat().st_size, sha256_of(index))
    return entries


def _reports(source: TensorSource, infos: Sequence[TensorInfo]) -> list[dict[str, Any]]:
    """Return the measured errors of the layers in one shard."""
    if not isinstance(source, QuantisedSource):
        return []
    layers = (i.name.removesuffix(f".{QWEIGHT}") for i in infos if i.name.endswith(f".{QWEIGHT}"))
    return [asdict(source.reports[layer]) for layer in layers]


def _kept_table() -> dict[str, str]:
    return {**dict(KEPT_LAYERS), "everything that is no matrix": NOT_A_MATRIX}


def _place_plain(work: Path, plain: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Link or copy the other files; yields their entries for the manifest."""
    for name, path in plain.items():
        target = work / name
        try:
            _link_or_copy(path, target)
            yield name, entry(target.stat().st_size, sha256_of(target))
        except OSError as error:
            raise output_error(target, error) from error


def _link_or_copy(path: Path, target: Path) -> None:
    """A hard link costs no space; another file system, or one without links, gets a copy."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        temporary = target.with_name(target.name + TEMPORARY)
        shutil.copyfile(path, temporary)
        temporary.replace(target)


def _finish(work: Path, out: Path) -> None:
    """From here on the result is whole."""
    try:
        work.rename(out)
    except OSError as error:
        raise output_error(out, error) from error
    _remove_progress(out)


def _remove_progress(out: Path) -> None:
    shutil.rmtree(out / _PROGRESS, ignore_errors=True)
