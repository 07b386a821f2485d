"""Pictures that stand for a video: one of its middle, and a sheet of several."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from lipcast.media.image import contact_sheet
from lipcast.media.mp4 import num_pictures
from lipcast.media.video import iter_frames

_SHEET_COLUMNS, _SHEET_PICTURES = 5, 20


def write_thumbnail(video: Path, to: Path) -> None:
    """Write the picture in the middle of a video as PNG. Raises InputError, OutputError."""
    _write(video, to, 1)


def write_spritesheet(video: Path, to: Path) -> None:
    """Write 20 pictures of a video, evenly spaced, as one PNG. Raises InputError, OutputError."""
    _write(video, to, _SHEET_PICTURES)


def _write(video: Path, to: Path, count: int) -> None:
    total = num_pictures(video)
    wanted = sorted({(2 * i + 1) * total // (2 * count) for i in range(count)})
    frames = islice(iter_frames(video), wanted[-1] + 1)
    kept = [frame for number, frame in enumerate(frames) if number in wanted]
    part = to.with_name(f"{to.name}.part")
    contact_sheet(kept, min(_SHEET_COLUMNS, count), part)
    part.replace(to)
