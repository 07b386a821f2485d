"""Read from an adapter, or the configuration beside it, how strongly it is merged.

    scale = alpha / rank, or alpha / sqrt(rank) where the adapter is rank-stabilised (rsLoRA)

Input: an opened adapter and the ranks of its layers. Output: a `Scaling`. Alpha comes from the first
that says it: the request, the layer's own `.alpha`, the file's metadata, `adapter_config.json` beside
it. The published adapter does not say its alpha, which is 64; any other counts as alpha = rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcast.env import logger
from lipcast.errors import CheckpointError
from lipcast.weights.disk import parse_json
from lipcast.weights.source import TensorSource

PUBLISHED_RANK, PUBLISHED_ALPHA = 128, 64.0
_PUBLISHED_NAME = "liveavatar"
CONFIG_NAME = "adapter_config.json"

_ALPHA_KEYS = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")
_JSON_KEYS = ("lora_adapter_metadata", "adapter_config", "peft_config", "lora_config")
"""Metadata whose value is a configuration as JSON."""
_OTHER_COMPONENTS = ("text_encoder", "transformer_2", "unet_2")
_REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise an adapter that change the base weights, which the file does not hold."""

_log = logger("weights.lora")


@dataclass(frozen=True, slots=True)
class Scaling:
    """The rule of one adapter file. `alpha` None: nobody says it."""

    path: Path
    alpha: float | None = None
    pattern: tuple[tuple[re.Pattern[str], float], ...] = ()
    stabilised: bool = False
    files: tuple[Path, ...] = ()
    """Files that the rule was read from, besides the adapter itself."""

    def alpha_of(self, layer: str) -> float | None:
        """Return alpha of a layer under the file's own name: by the first pattern that matches."""
        found = (alpha for pattern, alpha in self.pattern if pattern.fullmatch(layer))
        return next(found, self.alpha)

    def scale(self, layer: str, rank: int, *, asked: float | None, stored: float | None) -> float:
        """Return the factor of B·A. `asked` is of the request, `stored` the layer's own alpha."""
        if asked is None and stored is not None:
            return stored / rank  # whoever stores alpha by layer has put everything else into it
        alpha = self.alpha_of(layer) if asked is None else asked
        if alpha is None:
            alpha = PUBLISHED_ALPHA if is_published(self.path, rank) else float(rank)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def is_published(path: Path, rank: int) -> bool:
    """Return whether a file is the published Live Avatar adapter, by its name and rank."""
    return rank == PUBLISHED_RANK and path.stem.lower().startswith(_PUBLISHED_NAME)


def read_scaling(adapter: TensorSource, ranks: Collection[int]) -> Scaling:
    """Return the rule of an adapter. Raises CheckpointError for one that is no plain LoRA."""
    beside = adapter.path.parent / CONFIG_NAME
    config = _config_beside(adapter.path, beside, ranks) if beside.is_file() else {}
    embedded = _embedded(adapter)
    settings = {**config, **embedded}
    _check_method(adapter.path, settings)
    said = {**dict.fromkeys(config, beside), **dict.fromkeys(embedded, adapter.path)}
    key = next((key for key in _ALPHA_KEYS if settings.get(key) is not None), None)
    patterns = settings.get("alpha_pattern") or {}
    return Scaling(
        path=adapter.path,
        alpha=None if key is None else _number(said[key], key, settings[key]),
        pattern=tuple(_patterns(said.get("alpha_pattern", beside), patterns)),
        stabilised=_is_true(settings.get("use_rslora")),
        files=(beside,) if config else (),
    )


def _config_beside(adapter: Path, path: Path, ranks: Collection[int]) -> dict[str, Any]:
    """Return the configuration of peft beside an adapter; empty where it is of another adapter."""
    try:
        config = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected the configuration of an adapter as JSON, but it cannot be read "
            f"({error}); download it again, or remove it and give alpha as "
            f'"{adapter.name}:1.0:alpha=N"'
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, got {type(config).__name__}; download it again"
        )
    by_layer = config.get("rank_pattern")
    said = [config.get("r"), *(by_layer.values() if isinstance(by_layer, dict) else ())]
    numbers = {rank for rank in said if type(rank) is int}
    if numbers and ranks and numbers.isdisjoint(ranks):
        _log.warning(
            "%s: says rank %s, but %s has rank %s; it belongs to another adapter and is ignored",
            path, _listed(numbers), adapter.name, _listed(ranks),
        )  # fmt: skip
        return {}
    return {key: value for key, value in config.items() if value is not None}


def _listed(ranks: Collection[int]) -> str:
    return ", ".join(str(rank) for rank in sorted(ranks))


def _embedded(adapter: TensorSource) -> dict[str, Any]:
    """Return what the file's metadata says: plain keys, or a configuration as JSON."""
    found: dict[str, Any] = {}
    for key, text in adapter.metadata.items():
        found |= dict(_settings(key, _parsed(adapter.path, key, text)))
    return found


def _parsed(path: Path, key: str, text: str) -> Any:
    if key not in _JSON_KEYS and not key.endswith(("alpha_pattern", "rank_pattern")):
        return None if text in ("", "None", "null") else text
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: its metadata {key} is no JSON ({error}); download the adapter again"
        ) from error


def _settings(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings of the transformer: "transformer.lora_alpha", or those of a nested object."""
    component, _, name = key.rpartition(".")
    if value is None or component.startswith(_OTHER_COMPONENTS) or name in _OTHER_COMPONENTS:
        return
    if isinstance(value, dict) and not name.endswith("_pattern"):
        for inner, inner_value in value.items():
            yield from _settings(str(inner), inner_value)
    else:
        yield name, value


def _check_method(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what changes the formula."""
    method = str(settings.get("peft_type") or "LORA").upper().rpartition(".")[2]
    if method != "LORA":
        raise CheckpointError(not_lora(path, method))
    if _is_true(settings.get("use_dora")):
        raise CheckpointError(not_lora(path, "DoRA"))
    start = str(settings.get("init_lora_weights", "")).lower()
    if start.startswith(_REBASED):
        raise CheckpointError(
            f"{path}: the adapter was started with {start}, which changes the base weights as well, "
            "and the file does not hold them; convert it to a plain LoRA with peft "
            "(path_initial_model_for_weight_conversion)"
        )


def not_lora(path: Path, method: str) -> str:
    """Return what to say of an adapter of another kind."""
    if method == "DoRA":
        return (
            f"{path}: this is a DoRA adapter, which also sets the length of every row of the weights "
            "it was trained on; it cannot be merged exactly into any other base. Train or export "
            "it as a plain LoRA, or merge it with the program that trained it"
        )
    return (
        f"{path}: this is an adapter of the kind {method}, and only LoRA and plain differences are "
        "merged; export it as a LoRA, or merge it with the program that trained it"
    )


def _patterns(path: Path, patterns: Any) -> Iterator[tuple[re.Pattern[str], float]]:
    """Yield alpha_pattern as peft reads it: a regular expression for the end of a layer's name."""
    if not isinstance(patterns, dict):
        raise CheckpointError(
            f"{path}: expected alpha_pattern as an object {{layer: alpha}}, "
            f"got {type(patterns).__name__}; download the adapter again"
        )
    for text, alpha in patterns.items():
        try:
            yield re.compile(rf"(?:.*\.)?(?:{text})"), _number(path, f"alpha_pattern {text}", alpha)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: alpha_pattern: {text!r} is no regular expression ({error}); correct it, "
                "or give one alpha for all layers with the adapter (path:1.0:alpha=N)"
            ) from error


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _number(path: Path, key: str, value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CheckpointError(
            f"{path}: expected a number for {key}, got {value!r}; correct it, or give alpha with "
            "the adapter (path:1.0:alpha=N)"
        )
    return number
