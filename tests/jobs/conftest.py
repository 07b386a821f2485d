"""A workspace, and jobs for stand-in renderers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipcast.jobs.runner import input_sha256
from lipcast.jobs.store import Store

Submit = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs")


@pytest.fixture
def submit(store: Store, portrait: Path, sound: Any) -> Submit:
    """Add a job whose segments have two blocks; returns its name."""

    def submit(output: Path, seconds: float = 9.0, **more: Any) -> str:
        audio = sound(seconds)
        return store.submit([{
            "image": str(portrait), "audio": str(audio), "output": str(output), "segment_s": 0.96,
            "sha256": {str(path): input_sha256(path) for path in (portrait, audio)},
            "options": {"seed": 1}, "keep_segments": False, "independent": False, **more,
        }])[0]  # fmt: skip

    return submit
