"""The files of a checkpoint directory, found by their published names or by what is in them.

Input: a model's name, or a directory laid out as `Wan-AI/Wan2.2-S2V-14B` (or as the embedded
model). Output: a `CheckpointFiles` with a path for every part. What is missing is named, with what
lies there instead and what to do. Only looking into files under other names needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lipcast.env import cache_dir
from lipcast.errors import CheckpointError
from lipcast.weights.disk import UNFINISHED, check_downloaded, parse_json

EMBEDDED_MODELS = ("tiny",)
ADAPTER_MODEL = "live-avatar-14b"
"""Name of the published model: the adapter, pulled together with the base that it is for."""
MODEL_ALIASES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("14b", "live-avatar", "s2v-14b", "quark-vision/live-avatar"), ADAPTER_MODEL)
)
"""Other names of models, in lower case."""

INDEX_SUFFIX = ".safetensors.index.json"
DIT_NAME = "diffusion_pytorch_model"
ADAPTER_NAME = "liveavatar.safetensors"
ADAPTER_REPOSITORY = "Quark-Vision/Live-Avatar"
REPOSITORY = "Wan-AI/Wan2.2-S2V-14B"

PARTS = {
    "config": "config.json (what the transformer is built from)",
    "dit": f"{DIT_NAME}*.safetensors with its index, or one file (the transformer)",
    "vae": "Wan2.1_VAE.safetensors or Wan2.1_VAE.pth (the video autoencoder)",
    "text": "models_t5_*.safetensors or models_t5_*.pth (the text encoder, UMT5-XXL)",
    "tokenizer": "google/umt5-xxl/ (the text encoder's tokenizer)",
    "speech": "wav2vec2*/ with config.json and its weights (the speech encoder)",
}
"""Every part of a checkpoint: the published file names and what they are."""
_BY_CONTENT = ("dit", "vae", "text")
"""Parts that are one file with weights, which says itself what it is."""
ADAPTER_PART = "adapter"
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf", ".pth", ".pt", ".bin", ".ckpt")
_MAX_FILES = 500
SPEECH_FOLDERS = ("wav2vec2*", "audio_encoder")
ALL_PARTS = tuple(PARTS)
TEXT_PARTS = ("text", "tokenizer")
"""Parts that only a new prompt needs."""
MODEL_PARTS = tuple(part for part in PARTS if part not in TEXT_PARTS)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Paths of the parts; None: this directory has no such part.

    `dit`, `vae` and `text` open with `open_tensors`; `tokenizer` and `speech` are directories. The
    configurations of VAE and text encoder are None where the published defaults hold.
    """

    directory: Path
    config: Path | None
    dit: Path | None
    vae: Path | None
    text: Path | None
    tokenizer: Path | None
    speech: Path | None
    vae_config: Path | None
    text_config: Path | None
    adapter: Path | None
    """The published Live Avatar adapter, to be merged into `dit`; a converted one has it inside."""
    others: tuple[str, ...] = ()
    """Sentences about files here that can be no part; only where a part is missing."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names (keys of PARTS) of the parts that are not there."""
        return tuple(part for part in PARTS if getattr(self, part) is None and self._needs(part))

    def require(self, parts: Collection[str]) -> None:
        """Raise CheckpointError naming each of `parts` that is missing."""
        absent = [part for part in parts if part in self.missing]
        if absent:
            here = "\n".join(["Found here, but of no use for them:", *self.others, ""])
            raise CheckpointError(
                f"{self.directory}: the checkpoint is incomplete. Missing:\n"
                + "\n".join(f"  {PARTS[part]}" for part in absent)
                + f"\n{here if self.others else ''}Download what is missing from {REPOSITORY} into "
                "this directory, or correct the path."
            )

    def _needs(self, part: str) -> bool:
        # A text encoder with a configuration of its own that reads bytes has no tokenizer files.
        return part != "tokenizer" or self.text_config is None


def models_dir() -> Path:
    """Return the default directory of pulled models."""
    return cache_dir() / "models"


def model_name(name: str) -> str:
    """Return the name that a model is known and pulled by, for that name or another of it."""
    return MODEL_ALIASES.get(name.lower(), name)


def checkpoint_dir(name_or_dir: str | Path) -> Path:
    """Return the directory of a model: the embedded one, a directory, or a pulled one.

    A transformer's file stands for its directory, where that is a whole checkpoint. Raises
    CheckpointError where there is none.
    """
    name = model_name(str(name_or_dir))
    if name in EMBEDDED_MODELS:
        return Path(str(resources.files("lipcast") / "assets" / name))
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return _directory_of(path)
    pulled = models_dir() / name
    if Path(name).name == name and pulled.is_dir():
        return pulled
    if name == ADAPTER_MODEL:
        raise CheckpointError(
            f"model: {name} is not here; run `lipcast pull {name}`, or give the folder of its files"
        )
    known = ", ".join(EMBEDDED_MODELS)
    raise CheckpointError(
        f"model: expected a name ({known}, or a model that was pulled) or the directory of a "
        f"checkpoint, got {name!r}, which is none of them; check the path, or see `lipcast models`"
    )


def _directory_of(file: Path) -> Path:
    """Return the directory of a checkpoint that was named by its transformer or its index."""
    directory = file.resolve().parent
    if (directory / "config.json").is_file():
        dit = find_checkpoint(directory, need=()).dit
        if dit is not None and (dit.samefile(file) or file.name.startswith(f"{DIT_NAME}-")):
            return directory
    from lipcast.weights.recognise import recognise_file  # needs torch

    found = recognise_file(file).description
    raise CheckpointError(
        f"{file}: expected the directory of a checkpoint, got a file ({found}); put it beside "
        f"config.json and everything else from {REPOSITORY}, and give that directory"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file; raises CheckpointError for one that is not a JSON object."""
    check_downloaded(path)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON file, got: {error}; download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got {type(content).__name__}; download it again"
        )
    return content


def find_checkpoint(directory: str | Path, *, need: Collection[str] = ALL_PARTS) -> CheckpointFiles:
    """Return the files below `directory`; raises CheckpointError if a part of `need` is not there."""
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory; give the directory that holds config.json, "
            f"or download {REPOSITORY} into it"
        )
    files = CheckpointFiles(
        directory=directory,
        config=_one(directory, "config.json"),
        dit=_one(directory, f"{DIT_NAME}{INDEX_SUFFIX}", f"{DIT_NAME}.safetensors"),
        vae=_one(directory, "Wan2.1_VAE.safetensors", "Wan2.1_VAE.pth"),
        text=_one(
            directory,
            f"models_t5_*{INDEX_SUFFIX}",
            "models_t5_*.safetensors",
            "models_t5_*.pth",
        ),
        tokenizer=_one(directory, "google/umt5-xxl/", "umt5-xxl/", "tokenizer/"),
        speech=_one(directory, *(f"{name}/" for name in SPEECH_FOLDERS)),
        vae_config=_one(directory, "vae_config.json"),
        text_config=_one(directory, "t5_config.json"),
        adapter=_one(directory, ADAPTER_NAME),
    )
    _check_index_present(files)
    if any(getattr(files, part) is None for part in _BY_CONTENT):
        files = _with_other_names(files)
    files.require(need)
    return files


def _with_other_names(files: CheckpointFiles) -> CheckpointFiles:
    """Return the files with those parts filled in that lie here under other names.

    Raises CheckpointError where two files can be the same part.
    """
    from lipcast.weights.recognise import recognise_file  # needs torch

    found: dict[str, list[Path]] = {}
    others = [f"  {text}" for text in (*_pipeline(files.directory), *_unfinished(files.directory))]
    for path in _weight_files(files):
        kind = recognise_file(path)
        if kind.part in _BY_CONTENT and getattr(files, kind.part) is None:
            found.setdefault(kind.part, []).append(path)
        elif kind.part != ADAPTER_PART:
            others.append(f"  {path.relative_to(files.directory)}: {kind.description}")
    for part, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(files.directory)) for path in paths)
            raise CheckpointError(
                f"{files.directory}: expected one file of {PARTS[part]}, found {names}; "
                "leave only the one to use"
            )
    return replace(files, others=tuple(others), **{part: paths[0] for part, paths in found.items()})


def _pipeline(directory: Path) -> list[str]:
    """Return a sentence about a folder of diffusers, which names its model."""
    path = directory / "model_index.json"
    if not path.is_file():
        return []
    model = read_json(path).get("_class_name", "unknown")
    return [f"{path.name}: a folder of diffusers, made for {model}; its weights are looked at"]


def _weight_files(files: CheckpointFiles) -> Iterator[Path]:
    """Yield the files with weights here and one directory below that are no part yet.

    Of a set with an index, the index.
    """
    known = {files.dit, files.vae, files.text, files.adapter}
    for path in _files_near(files.directory, skip=files.speech):
        is_set = path.name.endswith(INDEX_SUFFIX)
        is_shard = re.search(r"-\d{5}-of-\d{5}\.", path.name) is not None
        if path not in known and not is_shard and (is_set or path.suffix in WEIGHT_SUFFIXES):
            yield path


def _unfinished(directory: Path) -> list[str]:
    """Return a sentence about each download here that has not finished."""
    paths = (p for p in _files_near(directory) if p.name.endswith(UNFINISHED))
    return [f"{p.relative_to(directory)}: a download that has not finished" for p in paths]


def _files_near(directory: Path, *, skip: Path | None = None) -> Iterator[Path]:
    """Yield the files here and one directory below, so many that a checkpoint has not more."""
    folders = [path for path in _listed(directory) if path.is_dir() and path != skip]
    found = (path for folder in (directory, *folders) for path in _listed(folder))
    yield from (path for path in islice(found, _MAX_FILES) if path.is_file())


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing where that may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _one(directory: Path, *patterns: str) -> Path | None:
    """The first pattern that matches decides; two files for one part are an error.

    A pattern that ends in "/" is one of directories.
    """
    for pattern in patterns:
        found = sorted(
            path
            for path in directory.glob(pattern.rstrip("/"))
            if path.is_dir() == pattern.endswith("/")
        )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(
                f"{directory}: expected one {pattern}, found {names}; leave only the one to use"
            )
        if found:
            return found[0]
    return None


def _check_index_present(files: CheckpointFiles) -> None:
    """Shards without their index are half a download, not a missing part."""
    shards = sorted(files.directory.glob(f"{DIT_NAME}-*-of-*.safetensors"))
    if shards and files.dit is None:
        raise CheckpointError(
            f"{files.directory}: found {len(shards)} files {DIT_NAME}-*.safetensors but not "
            f"{DIT_NAME}{INDEX_SUFFIX}, which says what is in them; download it from {REPOSITORY}"
        )
