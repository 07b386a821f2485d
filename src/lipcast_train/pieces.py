"""Train on a machine that is lent for minutes: bring the state there, train until a deadline, take it back.

Input: a preset, a folder with what an earlier piece brought back, a folder to bring things back in. Output:
a tar archive of states, pictures and model, in parts of a bounded size: `cat training.tar.* | tar x`. Needs
torch, numpy, safetensors and transformers only.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lipcast.errors import CheckpointError
from lipcast.weights.disk import make_directory, replacing
from lipcast_train.presets import Preset
from lipcast_train.run import MODEL_FOLDER, TrainingResult, train_all
from lipcast_train.sources import open_source
from lipcast_train.training.devices import Devices
from lipcast_train.training.loop import LoopSettings
from lipcast_train.training.state import Progress

PART_BYTES = 15 << 20
UNFINISHED = 75
"""Exit code (EX_TEMPFAIL): the state was saved; run again."""
_PARTS = "training.tar."
_KEPT = ("*.safetensors", "latents.json", "exported.txt", "samples/*.png", f"{MODEL_FOLDER}/**/*")
"""What is brought back; encoded clips are made again."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One stay: `state` holds what the last one brought back in `out`."""

    preset: Preset
    state: Path | None
    out: Path
    max_time_s: float
    device: torch.device
    part_bytes: int = PART_BYTES


def run_piece(
    piece: Piece, *, report: Callable[[str, Progress, int], None] = lambda *_: None
) -> TrainingResult:
    """Go on from the last state until all is done or the time is over, and bring everything back.

    Raises CheckpointError where parts of the state are missing.
    """
    deadline = time.monotonic() + piece.max_time_s
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if piece.state is not None:
            unpack(piece.state, work)
        settings = LoopSettings(
            work, bf16=piece.device.type == "cuda", deadline=deadline, report=report
        )
        source = open_source(piece.preset, None, piece.device)
        try:
            return train_all(piece.preset, source, Devices(piece.device), settings)
        finally:
            pack(work, piece.out, part_bytes=piece.part_bytes)


def pack(work: Path, out: Path, *, part_bytes: int) -> None:
    """Write what a training folder holds as parts, in place of those before. Raises OutputError."""
    make_directory(out)
    paths = sorted({p for kept in _KEPT for p in work.glob(kept) if p.is_file()})
    if not paths:
        return
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(work).as_posix())
        count = -(-whole.tell() // part_bytes)
        whole.seek(0)
        names = [f"{_PARTS}{number:03d}of{count:03d}" for number in range(count)]
        for name in names:
            with replacing(out / name) as file:
                file.write(whole.read(part_bytes))
    for old in _parts(out):
        if old.name not in names:
            old.unlink()


def unpack(state: Path, work: Path) -> None:
    """Put the parts of a folder together in another one; nothing where there are none."""
    parts = _parts(state)
    if not parts:
        return
    if {part.name.rpartition("of")[2] for part in parts} != {f"{len(parts):03d}"}:
        raise CheckpointError(
            f"{state}: parts of the archive are missing, there are {len(parts)} ({parts[0].name} ...); "
            "copy all of them, or delete them to begin anew"
        )
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            whole.write(part.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r") as archive:
            archive.extractall(work, filter="data")


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PARTS}[0-9][0-9][0-9]of[0-9][0-9][0-9]"))
