"""Adapters (LoRA) merged into the stream of base weights, one tensor at a time, in float32.

    W' = W + weight · (alpha / rank) · B @ A

Inputs: a source of base weights and adapter files with weights. Output: a source with the base's
names; tensors that an adapter changes are float32, so that they are rounded once, at the very end.
Every tensor of an adapter file must find its place, or the file belongs to another model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lipcast.errors import CheckpointError, UsageError
from lipcast.weights.files import open_tensors
from lipcast.weights.source import QWEIGHT, TensorInfo, TensorSource, summarise_names

RELEASED_RANK, RELEASED_ALPHA = 128, 64.0
"""The published Live Avatar adapter, whose file does not say its alpha."""

_PREFIX = re.compile(r"^(base_model\.model\.|diffusion_model\.)")
_FACTOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>A|B|down|up)(\.default)?\.weight$")
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """One adapter as asked for. `alpha` None: what the file says."""

    path: Path
    weight: float = 1.0
    alpha: float | None = None


def parse_lora(text: str) -> LoraSpec:
    """Read "path", "path:0.8" or "path:0.8:alpha=64"; raises UsageError."""
    wrong = f'lora: expected "path", "path:0.8" or "path:0.8:alpha=64", got "{text}"'
    match = re.fullmatch(r"(?P<path>.+?)(:(?P<weight>[-+.\deE]+))?(:alpha=(?P<alpha>.*))?", text)
    if match is None:
        raise UsageError(wrong)
    try:
        alpha = None if match["alpha"] is None else float(match["alpha"])
        return LoraSpec(Path(match["path"]), float(match["weight"] or 1.0), alpha)
    except ValueError as error:
        raise UsageError(wrong) from error


def merge_loras(base: TensorSource, specs: Sequence[LoraSpec]) -> TensorSource:
    """`base` with all adapters of `specs` merged in; raises CheckpointError if one does not fit."""
    if not specs:
        return base
    if any(name.endswith(f".{QWEIGHT}") for name in base.infos):
        raise CheckpointError(
            f"{specs[0].path}: cannot be merged into {base.path}, which is quantised; "
            "merge into the original checkpoint, then convert"
        )
    return MergedSource(base, [_Adapter(spec, base) for spec in specs])


@dataclass(frozen=True, slots=True)
class _Factors:
    """Names of the two factors of one layer and what their product is multiplied with."""

    a: str
    b: str
    scale: float


class _Adapter:
    """One adapter file, checked against the base: the layers it changes, the tensors it replaces.

    A replaced tensor counts in full at weight 1 and in proportion below, as the factors do.
    """

    def __init__(self, spec: LoraSpec, base: TensorSource) -> None:
        self.source = open_tensors(spec.path)
        self.weight = spec.weight
        sides, alphas, self.replaced = _sort_names(self.source, base)
        _check_pairs(spec.path, sides)
        self.factors: dict[str, _Factors] = {}
        for layer, names in sides.items():
            rank = _check_shapes(self.source, base, layer, names)
            alpha = self._layer_alpha(alphas.get(layer), spec, rank)
            self.factors[f"{layer}.weight"] = _Factors(names["A"], names["B"], alpha / rank)
        for target, name in self.replaced.items():
            _check_replaced(self.source, base.infos[target], name)

    def _layer_alpha(self, stored: str | None, spec: LoraSpec, rank: int) -> float:
        if spec.alpha is not None:
            return spec.alpha
        if stored is not None:
            return float(self.source.read(stored))
        return _file_alpha(self.source, rank)

    def apply(self, name: str, value: Tensor) -> None:
        """Change `value`, the float32 base tensor `name`, in place."""
        if name in self.replaced:
            value.lerp_(self.source.read(self.replaced[name]).float(), self.weight)
        if name not in self.factors:
            return
        factors = self.factors[name]
        a = self.source.read(factors.a).float()
        b = self.source.read(factors.b).float()
        value.addmm_(b, a, alpha=self.weight * factors.scale)


class MergedSource(TensorSource):
    """The base weights with adapters added; what they change is float32."""

    def __init__(self, base: TensorSource, adapters: Sequence[_Adapter]) -> None:
        self._base, self._adapters = base, adapters
        self.path, self.metadata = base.path, base.metadata
        self.files = (*base.files, *(a.source.path for a in adapters))
        self.changed = {n for a in adapters for n in (*a.factors, *a.replaced)}
        self.infos = {
            name: replace(info, dtype=torch.float32) if name in self.changed else info
            for name, info in base.infos.items()
        }

    def read(self, name: str) -> Tensor:
        tensor = self._base.read(name)
        if name not in self.changed:
            return tensor
        value = tensor.to(torch.float32, copy=True)
        for adapter in self._adapters:
            adapter.apply(name, value)
        return value


def _sort_names(
    adapter: TensorSource, base: TensorSource
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    """Adapter names as ({layer: {"A"|"B": name}}, {layer: alpha's name}, {base name: name}).

    Raises CheckpointError for names that mean nothing in the base and for doubles.
    """
    sides: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    replaced: dict[str, str] = {}
    unknown = []
    for name in adapter.infos:
        short = _PREFIX.sub("", name)
        factor = _FACTOR.match(short)
        layer = factor["layer"] if factor else short.removesuffix(".alpha")
        if f"{layer}.weight" not in base.infos and short not in base.infos:
            unknown.append(name)
        elif factor:
            _put_once(adapter.path, sides.setdefault(layer, {}), _SIDES[factor["side"]], name)
        elif short in base.infos:
            _put_once(adapter.path, replaced, short, name)
        else:
            alphas[layer] = name
    if unknown:
        raise CheckpointError(
            f"{adapter.path}: {len(unknown)} of {len(adapter.infos)} tensors belong to no layer "
            f"of {base.path}; the adapter is for another model:\n{summarise_names(unknown)}"
        )
    return sides, alphas, replaced


def _put_once(path: Path, table: dict[str, str], key: str, name: str) -> None:
    if key in table:
        raise CheckpointError(f"{path}: {table[key]} and {name} are the same tensor; keep one")
    table[key] = name


def _check_pairs(path: Path, sides: Mapping[str, Mapping[str, str]]) -> None:
    single = [name for names in sides.values() if len(names) == 1 for name in names.values()]
    if single:
        raise CheckpointError(
            f"{path}: expected the factors A and B of every layer, found only one of them in\n"
            f"{summarise_names(single)}\nThe file is incomplete, download it again."
        )


def _check_shapes(
    adapter: TensorSource, base: TensorSource, layer: str, names: Mapping[str, str]
) -> int:
    """Return the rank of one layer's factors; raises CheckpointError if they do not fit the base."""
    target = base.infos[f"{layer}.weight"]
    a, b = adapter.infos[names["A"]].shape, adapter.infos[names["B"]].shape
    _check_mergeable(adapter.path, target)
    if len(a) != 2 or len(b) != 2 or len(target.shape) != 2:
        raise CheckpointError(
            f"{adapter.path}: expected matrices for {layer}, got A {list(a)}, B {list(b)} on a "
            f"base of shape {list(target.shape)}; only linear layers can be adapted"
        )
    if a[0] != b[1]:
        raise CheckpointError(
            f"{adapter.path}: {layer}: A {list(a)} has rank {a[0]}, B {list(b)} has rank {b[1]}; "
            "the file is mixed from two adapters"
        )
    if (b[0], a[1]) != target.shape:
        raise CheckpointError(
            f"{adapter.path}: {layer}: expected A [rank, {target.shape[1]}] and "
            f"B [{target.shape[0]}, rank], got A {list(a)} and B {list(b)}; "
            "the adapter is for a model of another size"
        )
    return a[0]


def _check_replaced(adapter: TensorSource, target: TensorInfo, name: str) -> None:
    _check_mergeable(adapter.path, target)
    if adapter.infos[name].shape != target.shape:
        raise CheckpointError(
            f"{adapter.path}: {name}: expected shape {list(target.shape)}, "
            f"got {list(adapter.infos[name].shape)}; the adapter is for a model of another size"
        )


def _check_mergeable(path: Path, target: TensorInfo) -> None:
    if not target.dtype.is_floating_point or target.dtype.itemsize < 2:
        raise CheckpointError(
            f"{path}: cannot be merged into {target.name}, which is quantised ({target.dtype}); "
            "merge into the original checkpoint, then convert"
        )


def _file_alpha(adapter: TensorSource, rank: int) -> float:
    """Return alpha: from the file's metadata, from peft's adapter_config.json beside it, or as released."""
    for key in ("alpha", "lora_alpha", "ss_network_alpha"):
        if key in adapter.metadata:
            return _number(adapter.path, key, adapter.metadata[key])
    config = adapter.path.parent / "adapter_config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        return _number(config, "lora_alpha", content.get("lora_alpha"))
    if rank == RELEASED_RANK:
        return RELEASED_ALPHA
    raise CheckpointError(
        f"{adapter.path}: the file does not say its alpha (rank {rank}); "
        f'give it as "{adapter.path.name}:1.0:alpha=N"'
    )


def _number(path: Path, key: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a number for {key}, got {value!r}") from error
