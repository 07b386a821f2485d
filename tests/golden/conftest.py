"""Reference tensors: where they are and how a test reads them.

The folder comes from LIPCAST_GOLDEN_DIR; by default it is the copy inside the repository,
which holds the small cases. A case that a folder does not have is skipped with its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

DEFAULT_DIR = Path(__file__).parent / "data"


class GoldenCase:
    """One reference file: tensors by name, weights by prefix, metadata parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = safe_open(path, framework="pt")
        self.names = list(self._file.keys())
        self.meta = {k: _parse(v) for k, v in (self._file.metadata() or {}).items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Every tensor below `prefix`, the prefix removed from its name."""
        return {n[len(prefix) :]: self[n] for n in self.names if n.startswith(prefix)}

    def weights(self) -> dict[str, torch.Tensor]:
        return self.under("weights/")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def golden_dir() -> Path:
    return Path(os.environ.get("LIPCAST_GOLDEN_DIR", DEFAULT_DIR))


@pytest.fixture
def golden() -> Callable[[str], GoldenCase]:
    """Open a case by the beginning of its file name, e.g. golden("case07")."""

    def open_case(name: str) -> GoldenCase:
        found = sorted(golden_dir().glob(f"{name}*.safetensors"))
        if not found:
            pytest.skip(f"{golden_dir()} has no {name}")
        return GoldenCase(found[0])

    return open_case
