"""Downloading named models, and telling which models are here and whole.

Input: a model's name. Output: a directory with the published layout, complete or named file by file
as incomplete. The commit is pinned at the first download: `lipcast-pull.json` remembers it with every
file's size, and the hash of the large ones, so that a later run continues the same revision, and
completeness and wholeness need no network.
Whole files are kept; within a file the library resumes after a broken connection, not after a kill.
Needs huggingface_hub (extra `hub`), which reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lipcast.env import logger
from lipcast.errors import CheckpointError, OutputError, UsageError
from lipcast.weights.checkpoint import (
    ADAPTER_MODEL,
    ADAPTER_NAME,
    ADAPTER_REPOSITORY,
    PARTS,
    REPOSITORY,
    find_checkpoint,
    model_name,
    models_dir,
)
from lipcast.weights.disk import make_directory, output_error, sha256_of, write_text
from lipcast.weights.hub_library import Hub, HubLibrary
from lipcast.weights.manifest import read_manifest

_log = logger("weights.hub")

RECORD = "lipcast-pull.json"
_PARTIAL = Path(".cache") / "huggingface" / "download"
"""Folder of huggingface_hub's unfinished files, below the destination."""
_ORPHAN = re.compile(r"\.[0-9a-f]{8}\.incomplete$")
"""From version 2.4 on an unfinished file belongs to one process and is of no use to the next."""
_ORPHAN_AGE_S = 600.0


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of the hub and the files that are needed from it."""

    repo: str
    patterns: tuple[str, ...]


MODELS: Mapping[str, tuple[Repository, ...]] = MappingProxyType(
    {
        ADAPTER_MODEL: (
            Repository(
                REPOSITORY,
                (
                    "config.json",
                    "diffusion_pytorch_model*",
                    "models_t5_*",
                    "google/umt5-xxl/*",
                    "Wan2.1_VAE.pth",
                    "wav2vec2*/*.json",
                    "wav2vec2*/model.safetensors",
                    "wav2vec2*/pytorch_model.bin",
                ),
            ),
            Repository(ADAPTER_REPOSITORY, (ADAPTER_NAME,)),
        ),
    }
)
"""Models that can be pulled by name."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model directory. `missing` lists files, or parts of a checkpoint, that are not whole."""

    name: str
    directory: Path
    missing: tuple[str, ...]
    num_bytes: int

    @property
    def complete(self) -> bool:
        return not self.missing


def pull(
    name: str,
    *,
    dest: Path | None = None,
    revisions: Mapping[str, str] | None = None,
    offline: bool = False,
    progress: bool = True,
    hub: Hub | None = None,
) -> Path:
    """Download a model, or the rest of it, and return its directory.

    revisions: {repository: commit, branch or tag}; default: the commit of the first pull, else the
    newest. offline, or HF_HUB_OFFLINE: only check what is here. progress: bars on standard error.
    hub: stands in for huggingface_hub.
    Raises UsageError for an unknown name, CheckpointError for what the hub refuses or cannot
    deliver, OutputError where the disk is too small or not writable.
    """
    name = model_name(name)
    if name not in MODELS:
        raise UsageError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    dest = dest or models_dir() / name
    hub = hub or (None if offline else _library(progress=progress))
    if hub is not None and not offline:
        record = _resolve(name, dest, revisions or {}, hub)
        _remove_orphans(dest)
        _check_space(dest, record)
        _write_record(dest, record)
        for repository, entry in zip(MODELS[name], record["repositories"], strict=True):
            _call(hub, dest, repository.repo, list(entry["files"]), revision=entry["revision"])
    status = model_status(dest, name)
    if not status.complete:
        listed = "\n".join(f"  {file}" for file in status.missing)
        raise CheckpointError(
            f"{dest}: {name} is not complete. Missing or cut short:\n{listed}\n"
            f"Run `lipcast pull {name}` with a network connection; what is here is kept."
        )
    return dest


def pinned_revisions(directory: Path) -> dict[str, str]:
    """{repository: commit} of a pulled model."""
    record = _read_record(directory) or {"repositories": []}
    return {entry["repo"]: entry["revision"] for entry in record["repositories"]}


def verify_pulled(directory: Path) -> bool:
    """Hash the large files of a pulled model; False where no hashes are known.

    Raises CheckpointError naming the files that are not what the hub has.
    """
    record = _read_record(directory) or {"repositories": []}
    known = {n: h for r in record["repositories"] for n, h in r.get("sha256", {}).items()}
    wrong = [
        name
        for name, digest in known.items()
        if not (directory / name).is_file() or sha256_of(directory / name) != digest
    ]
    if wrong:
        listed = "\n".join(f"  {name}" for name in wrong)
        raise CheckpointError(
            f"{directory}: missing, or not the bytes that were published:\n{listed}\n"
            "Remove these files and pull again; the others are kept."
        )
    return bool(known)


def list_models(directory: Path | None = None) -> list[ModelStatus]:
    """Every model that can be pulled and every directory below `directory` that holds one."""
    directory = directory or models_dir()
    here = {path.name: path for path in sorted(directory.glob("*")) if path.is_dir()}
    names = [*MODELS, *(name for name in here if name not in MODELS)]
    return [model_status(directory / name, name) for name in names]


def model_status(directory: Path, name: str) -> ModelStatus:
    """Return whether a model directory is whole: by its manifest, its pull record, or its file names."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    return ModelStatus(name, directory, _missing(directory), num_bytes)


def _missing(directory: Path) -> tuple[str, ...]:
    if not directory.is_dir():
        return tuple(PARTS.values())
    manifest, record = read_manifest(directory), _read_record(directory)
    if manifest is not None:
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    elif record is not None:
        sizes = {n: s for r in record["repositories"] for n, s in r["files"].items()}
    else:
        return tuple(PARTS[part] for part in find_checkpoint(directory, need=()).missing)
    return tuple(n for n, size in sizes.items() if not _has_size(directory / n, size))


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _library(*, progress: bool) -> Hub | None:
    """huggingface_hub; None where the environment says that there is no network."""
    library = HubLibrary(progress=progress)
    return None if library.is_offline else library


def _call(hub: Hub, dest: Path, repo: str, patterns: list[str], **options: Any) -> Any:
    """Ask the hub for the files of one repository; its failures become ours."""
    try:
        return hub(repo, local_dir=dest, allow_patterns=patterns, **options)
    except OSError as error:
        # huggingface_hub's own errors are OSErrors too; those of the disk have a number.
        if error.errno is not None and not _is_network(error):
            raise output_error(dest, error) from error
        raise CheckpointError(_refused(repo, error)) from error
    except Exception as error:  # the HTTP library's errors share no base class with the hub's
        raise CheckpointError(_refused(repo, error)) from error


def _is_network(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _refused(repo: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return (
        f"{repo}: the hub did not deliver ({type(error).__name__}: {reason}); check the network, "
        "HF_ENDPOINT and, for a gated repository, HF_TOKEN, then run the same command again; "
        "what has arrived is kept"
    )


def _resolve(name: str, dest: Path, revisions: Mapping[str, str], hub: Hub) -> dict[str, Any]:
    """Pin every repository to a commit and list its files with their sizes; downloads nothing."""
    known = _read_record(dest) or {"repositories": []}
    pinned = {entry["repo"]: entry["revision"] for entry in known["repositories"]}
    pinned.update(revisions)
    entries = []
    for repository in MODELS[name]:
        revision = pinned.get(repository.repo)
        patterns = list(repository.patterns)
        files = _call(hub, dest, repository.repo, patterns, revision=revision, dry_run=True)
        if not files:
            raise CheckpointError(
                f"{repository.repo}: has none of the files {', '.join(repository.patterns)}; "
                "the revision is another one, name a commit that has them"
            )
        sizes = _without_doubles({file.filename: file.file_size for file in files})
        revision = files[0].commit_hash
        entries.append({"repo": repository.repo, "revision": revision, "files": sizes})
        entries[-1]["sha256"] = _hashes(hub, repository.repo, list(sizes), revision)
    return {"model": name, "repositories": entries}


def _hashes(hub: Hub, repo: str, files: list[str], revision: str) -> dict[str, str]:
    """Return the hashes that the hub tells; a mirror that tells none is no reason to refuse its files."""
    try:
        return hub.hashes(repo, files, revision)
    except Exception as error:  # the HTTP library's errors share no base class with the hub's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _log.warning("%s: hashes are not known (%s); sizes are checked only", repo, reason)
        return {}


def _without_doubles(sizes: dict[str, int | None]) -> dict[str, int | None]:
    """A pickle beside the same weights as safetensors is not needed."""
    return {
        name: size
        for name, size in sizes.items()
        if not name.endswith("/pytorch_model.bin")
        or name.replace("pytorch_model.bin", "model.safetensors") not in sizes
    }


def _check_space(dest: Path, record: Mapping[str, Any]) -> None:
    """Raise OutputError, file by file, if what is still to come does not fit the disk."""
    sizes = {n: s or 0 for r in record["repositories"] for n, s in r["files"].items()}
    wanted = {n: size for n, size in sizes.items() if not _has_size(dest / n, size)}
    needed = sum(wanted.values())
    free = shutil.disk_usage(_existing(dest)).free
    if needed > free:
        listed = "\n".join(f"  {_gigabytes(size)}  {n}" for n, size in wanted.items())
        raise OutputError(
            f"{dest}: {_gigabytes(needed)} are needed, {_gigabytes(free)} are free. To come:\n"
            f"{listed}\nFree some space or choose another directory with --dest."
        )


def _remove_orphans(dest: Path) -> None:
    """Free the space that killed downloads hold; one that still grows is somebody else's."""
    for path in (dest / _PARTIAL).rglob("*.incomplete"):
        if _ORPHAN.search(path.name) and time.time() - path.stat().st_mtime > _ORPHAN_AGE_S:
            path.unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    """Return the nearest directory above that exists."""
    return path if path.exists() else _existing(path.parent)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _read_record(directory: Path) -> dict[str, Any] | None:
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["repositories"]:
            entry["repo"], entry["revision"], entry["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged; remove it and pull again, files that are here are kept"
        ) from error
    return dict(record)


def _write_record(dest: Path, record: Mapping[str, Any]) -> None:
    make_directory(dest)
    write_text(dest / RECORD, json.dumps(record, indent=1))
