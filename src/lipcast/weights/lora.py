"""Adapters (LoRA) merged into the stream of base weights, one tensor at a time, in float32.

    W' = W + weight · (scale · B @ A + difference)

Inputs: a source of base weights and adapter files with weights. Output: a source with the base's
names; tensors that an adapter changes are float32, so that they are rounded once, at the very end.
Names are read by `lora_names`, scales by `lora_scaling`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

from lipcast.env import logger
from lipcast.errors import CheckpointError, UsageError
from lipcast.weights.files import open_tensors
from lipcast.weights.lora_names import Placed, Role, check_share, place_names
from lipcast.weights.lora_scaling import Scaling, is_published, read_scaling
from lipcast.weights.names import NameTable, dit_table
from lipcast.weights.source import QWEIGHT, TensorInfo, TensorSource, summarise_names

_MAX_SCALE = 1e4
"""Above this an alpha is a mistake: trainers stay below 100."""
_VARIANT_LAYER = "patch_embedding"
"""The layer whose input differs between the models of this family."""

_log = logger("weights.lora")


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
        weight = float(match["weight"] or 1.0)
    except ValueError as error:
        raise UsageError(wrong) from error
    if not isfinite(weight) or not isfinite(alpha or 0.0):
        raise UsageError(wrong)
    return LoraSpec(Path(match["path"]), weight, alpha)


def merge_loras(base: TensorSource, specs: Sequence[LoraSpec]) -> TensorSource:
    """Return `base` with all adapters merged in; raises CheckpointError if one does not fit."""
    if not specs:
        return base
    if any(name.endswith(f".{QWEIGHT}") for name in base.infos):
        raise CheckpointError(
            f"{specs[0].path}: cannot be merged into {base.path}, which is quantised; "
            "merge into the original checkpoint, then convert"
        )
    table = dit_table(base.infos)
    return MergedSource(base, [_Adapter(spec, base, table) for spec in specs])


@dataclass(frozen=True, slots=True)
class _Factors:
    """Names of the two factors of one layer and what their product is multiplied with."""

    a: str
    b: str
    scale: float

    def apply(self, adapter: TensorSource, value: Tensor, weight: float) -> None:
        a, b = (adapter.read(name).float().flatten(1) for name in (self.a, self.b))
        value.flatten(1).addmm_(b, a, alpha=weight * self.scale)


@dataclass(frozen=True, slots=True)
class _Difference:
    """A tensor that is added."""

    name: str
    scale: float = 1.0

    def apply(self, adapter: TensorSource, value: Tensor, weight: float) -> None:
        value.add_(adapter.read(self.name).float(), alpha=weight * self.scale)


@dataclass(frozen=True, slots=True)
class _Replacement:
    """A tensor that stands for the base's: in full at weight 1, in proportion below."""

    name: str

    def apply(self, adapter: TensorSource, value: Tensor, weight: float) -> None:
        value.lerp_(adapter.read(self.name).float(), weight)


_Change = _Factors | _Difference | _Replacement


class _Adapter:
    """One adapter file, checked against the base: what it does to which tensors."""

    def __init__(self, spec: LoraSpec, base: TensorSource, table: NameTable) -> None:
        self.source = open_tensors(spec.path)
        self.weight = spec.weight
        placed, foreign = place_names(spec.path, self.source.infos, table)
        placed, other = _of_this_variant(placed, self.source, base)
        check_share(spec.path, base.path, placed, [*foreign, *other])
        if 2 * sum(p.role == "set" for p in placed) > len(base.infos):
            raise CheckpointError(
                f"{spec.path}: expected an adapter (LoRA), found the weights of a whole model; "
                "give them with --ckpt_dir"
            )
        roles = _by_target(spec.path, placed)
        _check_pairs(spec.path, roles)
        ranks = {
            target: _check_factors(self.source, base.infos[target], found)
            for target, found in roles.items()
            if "B" in found
        }
        scaling = read_scaling(self.source, set(ranks.values()))
        self.files = (*self.source.files, *scaling.files)
        scales = {
            target: self._scale(scaling, roles[target], rank, asked=spec.alpha)
            for target, rank in ranks.items()
        }
        self.changes: dict[str, list[_Change]] = {}
        for target, found in roles.items():
            if changes := _changes(self.source, base.infos[target], found, scales):
                self.changes[target] = changes
        silent = {target for target in ranks if "alpha" not in roles[target]}
        if spec.alpha is None and (full := _full(scaling, roles, ranks, silent)):
            _log.warning(
                "%s: does not say its alpha, so it is merged at full strength (alpha = rank %s); "
                'if it was trained with another alpha, give it as "%s:1.0:alpha=N"',
                spec.path.name, ", ".join(str(rank) for rank in sorted(full)), spec.path.name,
            )  # fmt: skip

    def _scale(
        self, scaling: Scaling, found: Mapping[Role, Placed], rank: int, *, asked: float | None
    ) -> float:
        stored = None
        if "alpha" in found and asked is None:
            stored = _read_alpha(self.source, found["alpha"].name)
        scale = scaling.scale(found["A"].layer, rank, asked=asked, stored=stored)
        if not abs(scale * self.weight) <= _MAX_SCALE:
            raise CheckpointError(
                f"{self.source.path}: would be merged at {scale * self.weight:g} times its strength; "
                "correct its alpha, or give another with the adapter (path:1.0:alpha=N)"
            )
        return scale

    def apply(self, name: str, value: Tensor) -> None:
        """Change `value`, the float32 base tensor `name`, in place."""
        for change in self.changes.get(name, ()):
            change.apply(self.source, value, self.weight)


def _full(
    scaling: Scaling,
    roles: Mapping[str, Mapping[Role, Placed]],
    ranks: Mapping[str, int],
    silent: Collection[str],
) -> set[int]:
    """Return the ranks of the layers whose alpha nobody says."""
    return {
        ranks[target]
        for target in silent
        if scaling.alpha_of(roles[target]["A"].layer) is None
        and not is_published(scaling.path, ranks[target])
    }


class MergedSource(TensorSource):
    """The base weights with adapters added; what they change is float32."""

    def __init__(self, base: TensorSource, adapters: Sequence[_Adapter]) -> None:
        self._base, self._adapters = base, adapters
        self.path, self.metadata = base.path, base.metadata
        self.files = (*base.files, *(file for a in adapters for file in a.files))
        self.changed = {name for a in adapters for name in a.changes}
        self.infos = {
            name: replace(info, dtype=torch.float32) if name in self.changed else info
            for name, info in base.infos.items()
        }

    def read(self, name: str) -> Tensor:
        tensor = self._base.read(name)
        if name not in self.changed:
            return tensor
        value = tensor.to(torch.float32, copy=True).contiguous()
        for adapter in self._adapters:
            adapter.apply(name, value)
        return value


def _of_this_variant(
    placed: Sequence[Placed], adapter: TensorSource, base: TensorSource
) -> tuple[list[Placed], list[str]]:
    """Part what is placed from the names of an input layer that is as wide as another model's."""
    own, other = [p for p in placed if not _is_variant(p)], [p for p in placed if _is_variant(p)]
    if all(_has_width(p, adapter.infos[p.name], base.infos[p.target]) for p in other):
        return list(placed), []
    return own, [p.name for p in other]


def _is_variant(placed: Placed) -> bool:
    return placed.target.rpartition(".")[0] == _VARIANT_LAYER


def _has_width(placed: Placed, info: TensorInfo, target: TensorInfo) -> bool:
    if placed.role == "A":
        return prod(info.shape[1:]) == prod(target.shape[1:])
    return placed.role in ("B", "alpha", "add scaled") or info.shape == target.shape


def _by_target(path: Path, placed: Sequence[Placed]) -> dict[str, dict[Role, Placed]]:
    """Return what is done to each base tensor; raises CheckpointError for doubles."""
    roles: dict[str, dict[Role, Placed]] = {}
    for found in placed:
        table = roles.setdefault(found.target, {})
        if found.role in table:
            names = f"{table[found.role].name} and {found.name}"
            raise CheckpointError(f"{path}: {names} are the same tensor; keep one")
        table[found.role] = found
    return roles


def _check_pairs(path: Path, roles: Mapping[str, Mapping[Role, Placed]]) -> None:
    pairs = ([found[side] for side in ("A", "B") if side in found] for found in roles.values())
    single = [pair[0].name for pair in pairs if len(pair) == 1]
    if single:
        raise CheckpointError(
            f"{path}: expected the factors A and B of every layer, found only one of them in\n"
            f"{summarise_names(single)}\nThe file is incomplete, download it again."
        )


def _check_factors(adapter: TensorSource, target: TensorInfo, found: Mapping[Role, Placed]) -> int:
    """Return the rank of one layer's factors; raises CheckpointError if they do not fit the base.

    Those of a convolution, and those that are stored like one, count as matrices.
    """
    a, b = (adapter.infos[found[side].name].shape for side in ("A", "B"))
    layer = target.name.removesuffix(".weight")
    _check_mergeable(adapter.path, target)
    if len(a) < 2 or len(b) < 2 or len(target.shape) < 2:
        raise CheckpointError(
            f"{adapter.path}: expected matrices for {layer}, got A {list(a)}, B {list(b)} on a "
            f"base of shape {list(target.shape)}; only linear layers and convolutions can be adapted"
        )
    if a[0] != prod(b[1:]) or not a[0]:
        raise CheckpointError(
            f"{adapter.path}: {layer}: A {list(a)} has rank {a[0]}, B {list(b)} has rank "
            f"{prod(b[1:])}; the file is mixed from two adapters"
        )
    if (b[0], prod(a[1:])) != (target.shape[0], prod(target.shape[1:])):
        raise CheckpointError(
            f"{adapter.path}: {layer}: expected A [rank, {prod(target.shape[1:])}] and "
            f"B [{target.shape[0]}, rank], got A {list(a)} and B {list(b)}; "
            "the adapter is for a model of another size"
        )
    return a[0]


def _changes(
    adapter: TensorSource,
    target: TensorInfo,
    found: Mapping[Role, Placed],
    scales: Mapping[str, float],
) -> list[_Change]:
    """Return what is done to one tensor: first replaced, then added to."""
    changes: list[_Change] = []
    for role in ("set", "add", "add scaled"):
        if role in found:
            _check_same_shape(adapter, target, found[role].name)
    if "set" in found:
        changes.append(_Replacement(found["set"].name))
    if "add" in found:
        changes.append(_Difference(found["add"].name))
    if "add scaled" in found:
        weight = f"{target.name.removesuffix('bias')}weight"
        changes.append(_Difference(found["add scaled"].name, scales.get(weight, 1.0)))
    if "B" in found:
        changes.append(_Factors(found["A"].name, found["B"].name, scales[target.name]))
    return changes


def _check_same_shape(adapter: TensorSource, target: TensorInfo, name: str) -> None:
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


def _read_alpha(adapter: TensorSource, name: str) -> float:
    values = adapter.read(name).float().flatten()
    if values.numel() != 1 or not isfinite(value := float(values[0])):
        raise CheckpointError(
            f"{adapter.path}: {name}: expected one number, got {values.numel()} of them or none "
            'that is finite; give alpha with the adapter ("path:1.0:alpha=N")'
        )
    return value
