"""The files of a checkpoint directory, found by their published names.

Input: a model's name, or a directory laid out as `Wan-AI/Wan2.2-S2V-14B` (or as the embedded
model). Output: a `CheckpointFiles` with a path for every part. What is missing is named, with what
to do about it. Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lipcast.env import cache_dir
from lipcast.errors import CheckpointError

EMBEDDED_MODELS = ("tiny",)
ADAPTER_MODEL = "live-avatar-14b"
"""Name of the published model: the adapter, pulled together with the base that it is for."""
MODEL_ALIASES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("14b", "live-avatar", "s2v-14b", "quark-vision/live-avatar"), ADAPTER_MODEL)
)
"""Other names of models, in lower case."""

INDEX_SUFFIX = ".safetensors.index.json"
DIT_NAME = "diffusion_pytorch_model"
TEXT_GGUF = "umt5"
"""Beginning of the name that tells a text encoder's .gguf from a transformer's."""
ADAPTER_NAME = "liveavatar.safetensors"
ADAPTER_REPOSITORY = "Quark-Vision/Live-Avatar"
REPOSITORY = "Wan-AI/Wan2.2-S2V-14B"

PARTS = {
    "config": "config.json (what the transformer is built from)",
    "dit": f"{DIT_NAME}*.safetensors with its index, or one .gguf (the transformer)",
    "vae": "Wan2.1_VAE.safetensors or Wan2.1_VAE.pth (pictures to latents and back)",
    "text": "models_t5_*.safetensors, models_t5_*.pth or umt5*.gguf (the text encoder)",
    "tokenizer": "google/umt5-xxl/ (the text encoder's tokenizer)",
    "speech": "wav2vec2*/ with config.json and its weights (the speech encoder)",
}
"""Every part of a checkpoint: the published file names and what they are."""
ALL_PARTS = tuple(PARTS)
TEXT_PARTS = ("text", "tokenizer")
"""What only a new prompt needs."""
MODEL_PARTS = tuple(part for part in PARTS if part not in TEXT_PARTS)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Where each part is; None: this directory has no such part.

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

    @property
    def missing(self) -> tuple[str, ...]:
        """Names (keys of PARTS) of the parts that are not there."""
        return tuple(part for part in PARTS if getattr(self, part) is None and self._needs(part))

    def require(self, parts: Collection[str]) -> None:
        """Raise CheckpointError naming each of `parts` that is missing."""
        absent = [part for part in parts if part in self.missing]
        if absent:
            raise CheckpointError(
                f"{self.directory}: the checkpoint is incomplete. Missing:\n"
                + "\n".join(f"  {PARTS[part]}" for part in absent)
                + f"\nDownload them from {REPOSITORY} into this directory, or correct the path."
            )

    def _needs(self, part: str) -> bool:
        # A text encoder with a configuration of its own that reads bytes has no tokenizer files.
        return part != "tokenizer" or self.text_config is None


def models_dir() -> Path:
    """Where pulled models are kept unless told otherwise."""
    return cache_dir() / "models"


def model_name(name: str) -> str:
    """Return the name that a model is known and pulled by, for that name or another of it."""
    return MODEL_ALIASES.get(name.lower(), name)


def checkpoint_dir(name_or_dir: str | Path) -> Path:
    """Return where the files of a model are: the package, a directory, or where it was pulled to.

    Raises CheckpointError where there is none.
    """
    name = model_name(str(name_or_dir))
    if name in EMBEDDED_MODELS:
        return Path(str(resources.files("lipcast") / "assets" / name))
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
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


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file; raises CheckpointError for one that is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
        dit=_one(
            directory,
            f"{DIT_NAME}{INDEX_SUFFIX}",
            f"{DIT_NAME}.safetensors",
            "*.gguf",
            skip=TEXT_GGUF,
        ),
        vae=_one(directory, "Wan2.1_VAE.safetensors", "Wan2.1_VAE.pth"),
        text=_one(
            directory,
            f"models_t5_*{INDEX_SUFFIX}",
            "models_t5_*.safetensors",
            "models_t5_*.pth",
            f"{TEXT_GGUF}*.gguf",
        ),
        tokenizer=_one(directory, "google/umt5-xxl"),
        speech=_one(directory, "wav2vec2*"),
        vae_config=_one(directory, "vae_config.json"),
        text_config=_one(directory, "t5_config.json"),
        adapter=_one(directory, ADAPTER_NAME),
    )
    _check_index_present(files)
    files.require(need)
    return files


def _one(directory: Path, *patterns: str, skip: str | None = None) -> Path | None:
    """The first pattern that matches decides; two files for one part are an error.

    Names that begin with `skip` do not count.
    """
    for pattern in patterns:
        found = sorted(p for p in directory.glob(pattern) if not (skip and p.name.startswith(skip)))
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
