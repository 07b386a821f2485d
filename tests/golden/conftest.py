"""Reference tensors: where they are and how a test reads them.

The folder comes from LIPCAST_GOLDEN_DIR; by default it is the copy inside the repository,
which holds the small cases. A case that a folder does not have is skipped with its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_helpers import DEFAULT_DIR, GoldenCase


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
