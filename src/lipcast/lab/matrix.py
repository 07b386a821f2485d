"""Which cells a sweep has: the product of some axes, from a file or a preset.

Input: TOML or JSON. Output: a frozen `Matrix`. Names are flags of `lipcast bench`; whether a value can
be measured is found out cell by cell, never here.

    repeats = 2
    [fixed]
    model = "tiny"
    [axes]
    infer_frames = [48, 32]
    sample_steps = [4, 3]
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lipcast.config.text_file import read_text
from lipcast.errors import InputError, UsageError

Value = str | int | float | bool
Cell = Mapping[str, Value]
_COUNTS = ("repeats", "num_blocks", "warm_up_blocks")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every cell is `fixed` and one value of each axis; the last axis changes fastest."""

    axes: Mapping[str, tuple[Value, ...]]
    fixed: Cell = field(default_factory=lambda: MappingProxyType({}))
    repeats: int = 2
    """Fresh processes for each cell."""
    num_blocks: int = 4
    """Blocks that count, in each process."""
    warm_up_blocks: int = 4
    """Blocks before them; the ring of a window of 48 frames is full after 4."""

    def cells(self) -> list[Cell]:
        """Return the cells in order."""
        combinations = product(*self.axes.values())
        return [
            {**self.fixed, **dict(zip(self.axes, values, strict=True))} for values in combinations
        ]


PRESETS: Mapping[str, Matrix] = MappingProxyType(
    {
        "low-vram-study": Matrix(
            axes={
                "sample_steps": (4, 3, 2),
                "infer_frames": (48, 32, 24),
                "enable_online_decode": (True, False),
            },
            fixed={"schedule": "sequential"},
        ),
    }
)
"""The matrix of the published study of small GPUs, with the steps beside it."""


def read_matrix(path: Path) -> Matrix:
    """Return the matrix that a TOML or JSON file describes. Raises InputError and UsageError."""
    text = read_text(path)
    is_json = text.lstrip().startswith("{")
    try:
        content = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both of their errors are ValueErrors
        kind = "JSON" if is_json else "TOML"
        raise InputError(f"--matrix: {path} is not {kind} ({error})") from error
    return matrix_of(content)


def matrix_of(content: Any) -> Matrix:
    """Return a matrix from plain data; raises UsageError for an unknown field."""
    known = {"axes", "fixed", *_COUNTS}
    if not isinstance(content, dict) or not isinstance(content.get("axes"), dict):
        raise UsageError("--matrix: expected a table [axes] of lists, got none; see docs/lab.md")
    if unknown := sorted(set(content) - known):
        raise UsageError(f"--matrix: expected {', '.join(sorted(known))}, got {unknown[0]}")
    for name, values in content["axes"].items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"--matrix: axis {name}: expected a list of values, got {values!r}")
    counts = {name: _count(name, content[name]) for name in _COUNTS if name in content}
    axes = {name: tuple(values) for name, values in content["axes"].items()}
    return Matrix(axes=axes, fixed=dict(content.get("fixed", {})), **counts)


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"--matrix: {name}: expected a whole number of at least 1, got {value!r}")
    return value
