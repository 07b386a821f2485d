"""The clips that a preset is trained on, and those that are kept for its report.

Input: a preset, perhaps a folder of real videos. Output: clip sources.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lipcast_train.data.clips import Clip, ClipSource
from lipcast_train.data.procedural import FRAMES_PER_BLOCK, ProceduralClips
from lipcast_train.presets import Preset

_HELD_OUT_SEED = 1_000_003


def open_source(preset: Preset, data: Path | None, device: torch.device) -> ClipSource:
    """Return drawn clips, or those of a folder. Raises InputError for a folder without any."""
    num_blocks = preset.clip_frames // FRAMES_PER_BLOCK
    if data is None:
        return _drawn(preset, preset.num_clips, preset.seed, device)
    from lipcast_train.data.folder import FolderClips  # needs FFmpeg

    return FolderClips(data, num_blocks=num_blocks, side=preset.side)


def held_out_clips(preset: Preset) -> list[tuple[int, Clip]]:
    """Return drawn clips of people and voices that no training with this preset has seen."""
    source = _drawn(preset, preset.held_out, preset.seed + _HELD_OUT_SEED, torch.device("cpu"))
    return [(index, source.clip(index)) for index in range(preset.held_out)]


def _drawn(preset: Preset, count: int, seed: int, device: torch.device) -> ClipSource:
    num_blocks = preset.clip_frames // FRAMES_PER_BLOCK
    return ProceduralClips(
        num_clips=count, seed=seed, num_blocks=num_blocks, side=preset.side,
        variety=preset.variety, device=device,
    )  # fmt: skip
