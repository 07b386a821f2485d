"""The note that a video is synthetic: in files of every kind, in files made of files, or not at all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from lipcast.media.concat import concat
from lipcast.media.marking import SYNTHETIC_MEDIA
from lipcast.media.video import VideoWriter


def _write(path: Path, **options: bool) -> Path:
    with VideoWriter(
        path, width=64, height=64, sample_rate=16_000, num_channels=1, **options
    ) as writer:
        writer.write(np.zeros((25, 64, 64, 3), np.uint8), np.zeros((16_000, 1), np.float32))
    return path


def _comment(path: Path) -> str | None:
    with av.open(str(path)) as file:
        return {name.lower(): text for name, text in file.metadata.items()}.get("comment")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_files_say_that_they_are_synthetic(tmp_path, suffix):
    assert _comment(_write(tmp_path / f"marked{suffix}")) == SYNTHETIC_MEDIA
    assert _comment(_write(tmp_path / f"plain{suffix}", marked=False)) is None


def test_the_note_survives_joining(tmp_path):
    parts = [_write(tmp_path / f"{name}.mp4") for name in "ab"]
    concat(parts, tmp_path / "joined.mp4")
    assert _comment(tmp_path / "joined.mp4") == SYNTHETIC_MEDIA
