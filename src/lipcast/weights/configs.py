"""The configurations of a model, read without its weights and without torch.

Input: a model's name, or the folder of a checkpoint. Output: `Models`. Raises CheckpointError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lipcast.config.models import DiTConfig, Models, SpeechShape, TextConfig, VAEConfig
from lipcast.errors import CheckpointError
from lipcast.weights.checkpoint import (
    ADAPTER_MODEL,
    SPEECH_FOLDERS,
    checkpoint_dir,
    model_name,
    read_json,
)


def read_configs(model: str | Path) -> Models:
    """Return the configurations of a model by name, or in a folder.

    Those of the published model are known without its files.
    """
    is_published = model_name(str(model)) == ADAPTER_MODEL
    try:
        folder = checkpoint_dir(model)
    except CheckpointError:
        if is_published:
            return Models()
        raise
    dit = _read(folder / "config.json")
    if dit is None and is_published:
        return Models()
    if dit is None:
        raise CheckpointError(
            f"{folder}: expected the folder of a checkpoint, found no config.json in it; "
            "check the path"
        )
    vae = _read(folder / "vae_config.json")
    found = (path for name in SPEECH_FOLDERS for path in sorted(folder.glob(f"{name}/config.json")))
    speech = next((_read(path) for path in found), None)
    return Models(
        DiTConfig.from_json(dit),
        VAEConfig.from_json(vae or {}),
        text_config(folder),
        SpeechShape.from_json(speech or {}),
    )


def text_config(folder: Path) -> TextConfig:
    """Return the configuration of the text encoder; the published one where there is no file."""
    return TextConfig.from_json(_read(folder / "t5_config.json") or {})


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
