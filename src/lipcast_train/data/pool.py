"""Clips as training takes them: numbered, drawn at random by step, the last ones kept in memory.

Input: a `ClipSource`. Everything is a function of (seed, phase, step).
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor

from lipcast_train.data.clips import Clip, ClipSource, Voice

KEPT_BYTES = 1 << 30
"""Of frames in memory."""
_KEPT_VOICES = 64
MOUTH_WEIGHT, EYES_WEIGHT = 4.0, 3.0
_WEIGHTS = {"mouth": MOUTH_WEIGHT, "eyes": EYES_WEIGHT}


class ClipPool:
    """Clips of a source that were used last; a clip may be taken again and again."""

    def __init__(self, source: ClipSource, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._source, self._kept_bytes = source, kept_bytes
        self._clips: OrderedDict[int, Clip] = OrderedDict()
        self._num_bytes = 0
        self._voice = lru_cache(_KEPT_VOICES)(source.voice)

    def __len__(self) -> int:
        return len(self._source)

    def voice(self, index: int) -> Voice:
        """Return the sound of a clip, and how a mouth moves to it."""
        return self._voice(index)

    def clip(self, index: int) -> Clip:
        """Return a clip."""
        if index in self._clips:
            self._clips.move_to_end(index)
            return self._clips[index]
        clip = self._clips[index] = self._source.clip(index)
        self._num_bytes += clip.frames_THWC.nbytes
        while self._num_bytes > self._kept_bytes and len(self._clips) > 1:
            _, oldest = self._clips.popitem(last=False)
            self._num_bytes -= oldest.frames_THWC.nbytes
        return clip


def dice(*key: object) -> random.Random:
    """Return random numbers that are a function of the key, whatever process asks."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def noise_like(like: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers of the shape and on the device of a tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.device)


def pixel_weights(clip: Clip) -> Tensor:
    """Return weights_HW of the pixels in a loss: more for the mouth and the eyes; their mean is 1."""
    height, width = clip.frames_THWC.shape[1:3]
    weights_HW = torch.ones(height, width)
    for name, weight in _WEIGHTS.items():
        if name in clip.face_boxes:
            x, y, box_width, box_height = clip.face_boxes[name]
            weights_HW[y : y + box_height, x : x + box_width] = weight
    return weights_HW / weights_HW.mean()
