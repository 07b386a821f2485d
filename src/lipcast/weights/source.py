"""The interface of every kind of weight file: named tensors, read one at a time.

A `TensorSource` knows names, shapes and dtypes of all tensors without reading any, and reads one
on demand. Files are sources; so are the merge of an adapter and a quantisation, which wrap another
source. Nothing ever holds more than the tensor being read.
Invariant: `infos` is in the order in which the tensors are best read.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of one tensor: its header without its data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


class TensorSource(ABC):
    """Named tensors with headers known beforehand.

    `path` is what error messages name; `files` are the files whose bytes decide the result;
    `metadata` is the file's own free-form text by key.
    """

    path: Path
    files: tuple[Path, ...]
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return the tensor `name` (a key of `infos`) on the CPU; raises CheckpointError."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.infos:
            yield name, self.read(name)

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.infos.values())


QWEIGHT = "qweight"
"""Name of the main part of a quantised weight; a layer that has one has no `weight`."""


class RenamedSource(TensorSource):
    """The same tensors under other names; where `rename` gives None, the tensor is left out.

    `rename` must map different names to different names. The parts of a quantised weight are
    renamed as the weight would be.
    """

    def __init__(self, base: TensorSource, rename: Callable[[str], str | None]) -> None:
        self.path, self.files, self.metadata = base.path, base.files, base.metadata
        self._base = base
        renamed = [
            (new, name) for name in base.infos if (new := self._new_name(name, rename)) is not None
        ]
        self._old_names = dict(renamed)
        assert len(self._old_names) == len(renamed), "rename gave one name to two tensors"
        self.infos = {
            new: replace(base.infos[old], name=new) for new, old in self._old_names.items()
        }

    def _new_name(self, name: str, rename: Callable[[str], str | None]) -> str | None:
        layer, _, part = name.rpartition(".")
        if part == "bias" or f"{layer}.{QWEIGHT}" not in self._base.infos:
            return rename(name)
        weight = rename(f"{layer}.weight")
        return None if weight is None else weight.removesuffix("weight") + part

    def read(self, name: str) -> Tensor:
        return self._base.read(self._old_names[name])


def summarise_names(names: Iterable[str], *, max_lines: int | None = None) -> str:
    """Return all names on few lines: those that differ in their first number only become one line.

    "blocks.0.norm.bias", "blocks.1.norm.bias" -> "blocks.{0-1}.norm.bias". The number may stand
    between underscores. Lines beyond `max_lines` are counted instead of shown.
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=[._])\d{1,9}(?=[._])", name)
        pattern = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        groups.setdefault(pattern, []).extend([] if number is None else [int(number[0])])
    lines = [f"  {pattern.replace('{}', _ranges(found))}" for pattern, found in groups.items()]
    if max_lines is not None and len(lines) > max_lines:
        lines[max_lines:] = [f"  and {len(lines) - max_lines} more like these"]
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """Format [0, 1, 2, 5] as "{0-2,5}"; a single number stays bare."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return parts[0] if len(numbers) == 1 else f"{{{','.join(parts)}}}"
