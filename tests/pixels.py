"""Mouth opening of an illustrated portrait, counted in pixels."""

from __future__ import annotations

import numpy as np

_INTERIOR = np.array([76, 18, 23], dtype=np.float32)
_MAX_DISTANCE = 48
_MIN_REDNESS = 38


def mouth_opening(frames: np.ndarray) -> np.ndarray:
    """Pixels of the mouth's dark inside, per frame, in a box around the mouth.

    A pixel counts whose colour lies within 48 of (76, 18, 23) and whose red exceeds its green by
    more than 38. frames: uint8 [n, H, W, 3]. The drawn mouth itself correlates 0.98 with its drive.
    """
    height, width = frames.shape[1:3]
    top, bottom = round(0.5 * height), round(0.8 * height)
    left, right = round(0.3 * width), round(0.7 * width)
    box = frames[:, top:bottom, left:right].astype(np.float32)
    near = np.linalg.norm(box - _INTERIOR, axis=-1) < _MAX_DISTANCE
    red = box[..., 0] - box[..., 1] > _MIN_REDNESS
    return (near & red).sum(axis=(1, 2)).astype(np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over the frames that both have."""
    n = min(len(a), len(b))
    return float(np.corrcoef(a[:n], b[:n])[0, 1])


def until_closed(opening: np.ndarray, closed: float = 0.25) -> int:
    """Pictures before the mouth is closed, and stays so."""
    still_open = np.flatnonzero(opening >= closed)
    return int(still_open[-1]) + 1 if len(still_open) else 0
