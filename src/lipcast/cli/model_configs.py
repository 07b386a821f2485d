"""The configurations of a model, read without its weights.

Input: "tiny", "14b" (the published model, which need not be there), a pulled model, or a folder.
Output: the four configurations. Raises CheckpointError for a folder that holds none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipcast.core.config import DiTConfig, TextConfig, VAEConfig
from lipcast.core.tensors import SpeechShape
from lipcast.errors import CheckpointError
from lipcast.weights.checkpoint import checkpoint_dir, read_json

EMBEDDED, PUBLISHED = "tiny", "14b"


@dataclass(frozen=True, slots=True)
class ModelConfigs:
    """What the four networks are built from; the defaults are the published model's."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    speech: SpeechShape = field(default_factory=SpeechShape)


def read_configs(model: str) -> ModelConfigs:
    """The configurations of a model by name or folder."""
    if model == PUBLISHED:
        return ModelConfigs()
    try:
        folder = checkpoint_dir(model)
    except CheckpointError as error:
        hint = f"{PUBLISHED} is the published model without its files"
        raise CheckpointError(f"{error}; {hint}") from error
    return configs_in(folder)


def configs_in(folder: Path) -> ModelConfigs:
    """The configurations in a checkpoint's folder."""
    dit = _read(folder / "config.json")
    if dit is None:
        raise CheckpointError(
            f"{folder}: expected the folder of a checkpoint, found no config.json in it; "
            "check the path"
        )
    vae, text = _read(folder / "vae_config.json"), _read(folder / "t5_config.json")
    speech = next((_read(path) for path in sorted(folder.glob("wav2vec2*/config.json"))), None)
    return ModelConfigs(
        DiTConfig.from_json(dit),
        VAEConfig.from_json(vae or {}),
        TextConfig.from_json(text or {}),
        SpeechShape.from_json(speech or {}),
    )


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
