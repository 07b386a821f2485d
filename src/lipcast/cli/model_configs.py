"""The configurations of a model, read without its weights.

Input: "tiny", "14b" (the published model, which need not be there), or the folder of a checkpoint.
Output: the four configurations. Raises CheckpointError for a folder that holds none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from lipcast.core.config import DiTConfig, TextConfig, VAEConfig
from lipcast.core.tensors import SpeechShape
from lipcast.errors import CheckpointError

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
    folder = _folder(model)
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


def _folder(model: str) -> Path:
    if model == EMBEDDED:
        return Path(str(resources.files("lipcast") / "assets" / EMBEDDED))
    path = Path(model).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"--model: expected {EMBEDDED}, {PUBLISHED} or the folder of a checkpoint, "
            f"got {model}, which is not there"
        )
    return path


def _read(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON file, got: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
