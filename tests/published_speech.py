"""The features of a whole sound at once, as the published code makes them.

The engine makes them a window at a time; the tests compare.
Shapes: G layers + 1, T features, D width, F frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lipcast.config.models import VIDEO_FPS
from lipcast.models.speech import (
    MIDDLE_RATE,
    interpolate,
    middle_index,
    middle_ratio,
    num_middle_features,
)


def resample_middle(features_GTD: Tensor) -> Tensor:
    """50 -> 30 Hz, linear with align_corners: [G, T, D] to [G, int(0.6 T), D]."""
    num_features = features_GTD.shape[1]
    steps = torch.arange(num_middle_features(num_features), dtype=torch.float64)
    return interpolate(features_GTD, steps * middle_ratio(num_features))


def frame_features(
    middle_GTD: Tensor, num_frames: int, *, pad: Literal["last", "zeros"] = "last"
) -> Tensor:
    """30 Hz features to one per video frame, [G, D, F].

    Frames past the end get the last feature; `pad="zeros"` gives zeros as the published code
    does, which no model was trained on.
    """
    index_F = middle_index(num_frames)
    inside_F = index_F < middle_GTD.shape[1]
    frames_GFD = middle_GTD[:, index_F.clamp(max=middle_GTD.shape[1] - 1)]
    if pad == "zeros":
        frames_GFD = frames_GFD * inside_F[:, None]
    return frames_GFD.transpose(1, 2)


def num_published_clips(num_middle: int, frames_per_clip: int) -> int:
    """Clips that the published code makes of a 30 Hz sequence: one more than the full ones."""
    return int(num_middle / (frames_per_clip * MIDDLE_RATE / VIDEO_FPS)) + 1
