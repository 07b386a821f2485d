"""SyncNet's confidence, distance and offset of a video, with the weights that the user supplies.

Input: footage, the face in it, its sound, a network. Output: metrics. The face is cut out as the public
pipeline cuts it, but around the landmarks that Lipcast sees instead of its own detector's box, so that
figures are near those that others publish, and not the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.lab.face import FaceTrack
from lipcast.lab.footage import Footage
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.mfcc import COLUMNS_PER_S, mfcc
from lipcast.lab.pictures import Floats, Frame, bilinear
from lipcast.lab.sync import speech

GROUP = "lip sync by SyncNet"
NAMES = ("confidence", "distance", "offset")
SIDE = 224
"""Pixels of the square that the network sees."""
WINDOW = 5
"""Video frames that it sees at once."""
MAX_LAG = 15
_COLUMNS = COLUMNS_PER_S // VIDEO_FPS
"""Columns of sound for a video frame."""
_BATCH = 4
_CROP = 0.4
"""How much wider than the face the square is, in half sides of it; it goes as much further down."""
_SMOOTHED = 13
"""Frames over which the place of the face is a median."""
_GREY = 110.0
"""Grey level of what lies outside of the picture."""
_ALMOST_NOTHING = 1e-6
"""Added to every difference, as PyTorch's pairwise distance does."""
_MIN_FRAMES = 24


class Network(Protocol):
    """Both halves of SyncNet, or what stands in for them."""

    def lips(self, pictures: Floats) -> Floats:
        """Embed [n, 3, 5, 224, 224] (BGR, 0..255) as [n, d]."""

    def sound(self, columns: Floats) -> Floats:
        """Embed [n, 1, 13, 20] as [n, d]."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Result of the distances of pictures and sounds; `offset` in frames, positive: the mouth is late."""

    confidence: float
    distance: float
    offset: int


def load_network(path: Path) -> Network:
    """Load SyncNet from the published file. Raises CheckpointError."""
    import torch

    from lipcast.lab.syncnet_model import load_syncnet

    model = load_syncnet(path)

    class OnTorch:
        @torch.inference_mode()
        def lips(self, pictures: Floats) -> Floats:
            return np.asarray(model.lips(torch.from_numpy(pictures)).numpy())

        @torch.inference_mode()
        def sound(self, columns: Floats) -> Floats:
            return np.asarray(model.sound(torch.from_numpy(columns)).numpy())

    return OnTorch()


def syncnet(
    footage: Footage, face: FaceTrack, sound: Path | None, network: Network
) -> list[Metric]:
    """Measure how surely SyncNet finds that mouth and voice belong together.

    distance: Euclid between the 1024 numbers of five pictures and of their 0.2 s of sound, mean over the
    video, at the best lag of up to 15 frames; 0.., lower is better. confidence: median of the mean
    distances over all lags less the least of them; 0.., higher is better. offset: the best lag in frames,
    positive where the mouth is late. Beyond its ends the sound's numbers are zeros, as published. Source:
    Chung and Zisserman 2016; used as LSE-C and LSE-D by Prajwal et al. 2020.
    """
    if face.points is None:
        return _unavailable(face.reason)
    if sound is None:
        return _unavailable("the video has no sound and none was given (--audio)")
    if footage.fps != VIDEO_FPS:
        return _unavailable(f"{footage.fps:g} frames a second; SyncNet knows {VIDEO_FPS}")
    voice = speech(sound)
    num_frames = min(len(face.points), len(voice) * VIDEO_FPS // SAMPLE_RATE)
    if num_frames < _MIN_FRAMES:
        return _unavailable(f"{num_frames} frames; at least {_MIN_FRAMES} are needed")
    count = num_frames - WINDOW
    lips = _embedded(islice(_windows(footage, face.points), count), network.lips)
    heard = _embedded(islice(_columns(voice), count), network.sound)
    found = agreement(distances(lips, heard))
    return [
        measured(GROUP, "confidence", found.confidence, "", "higher"),
        measured(GROUP, "distance", found.distance, "", "lower"),
        measured(
            GROUP, "offset", found.offset, "frames", "zero", note="positive: the mouth is late"
        ),
    ]


def _unavailable(reason: str) -> list[Metric]:
    return [unavailable(GROUP, name, reason) for name in NAMES]


def without_weights() -> list[Metric]:
    """Return the metrics of this module as unavailable: no weights were given."""
    return _unavailable("no weights were given (--syncnet syncnet_v2.model)")


def distances(lips: Floats, heard: Floats) -> NDArray[np.float64]:
    """Return the distances of each window's pictures to the sounds 15 frames before to 15 after, [n, 31]."""
    padded = np.pad(heard, ((MAX_LAG, MAX_LAG), (0, 0)))
    count, lags = len(lips), 2 * MAX_LAG + 1
    found = [
        np.linalg.norm(lips - padded[lag : lag + count] + _ALMOST_NOTHING, axis=1)
        for lag in range(lags)
    ]
    return np.stack(found, axis=1).astype(np.float64)


def agreement(by_lag: NDArray[np.float64]) -> Agreement:
    """Return the metrics that follow from the distances [n, 31]."""
    means = by_lag.mean(axis=0)
    best = int(means.argmin())
    least = float(means[best])
    return Agreement(float(np.median(means)) - least, least, MAX_LAG - best)


def _embedded(windows: Iterator[Floats], embed: Callable[[Floats], Floats]) -> Floats:
    """Embed a few at a time: pictures of a whole video would not fit in memory."""
    found = []
    while batch := list(islice(windows, _BATCH)):
        found.append(embed(np.stack(batch)))
    return np.concatenate(found)


def _windows(footage: Footage, points: NDArray[np.float64]) -> Iterator[Floats]:
    """Yield [3, 5, 224, 224] for every five pictures in a row."""
    recent: deque[Floats] = deque(maxlen=WINDOW)
    for frame, place in zip(footage.open(), face_squares(points), strict=False):
        recent.append(cut_face(frame, place))
        if len(recent) == WINDOW:
            yield np.stack(recent, axis=1)


def _columns(voice: NDArray[np.float64]) -> Iterator[Floats]:
    """Yield [1, 13, 20] for every five frames in a row."""
    found = mfcc(np.rint(voice * 32768)).T.astype(np.float32)
    for begin in range(0, found.shape[1] - WINDOW * _COLUMNS + 1, _COLUMNS):
        yield found[None, :, begin : begin + WINDOW * _COLUMNS]


def face_squares(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return centre x, centre y and half the longer side of the box around the points, [n, 3]; smoothed."""
    low, high = points.min(axis=1), points.max(axis=1)
    raw = np.column_stack([(low + high) / 2, (high - low).max(axis=1) / 2])
    padded = np.pad(raw, ((_SMOOTHED // 2, _SMOOTHED // 2), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, axis=0)
    return np.asarray(np.median(around, axis=-1))


def cut_face(frame: Frame, place: NDArray[np.float64]) -> Floats:
    """Return the square around a face as the network sees it: [3, 224, 224], BGR, 0..255."""
    x, y, half = place
    left, top = x - half * (1 + _CROP), y - half
    steps = (np.arange(SIDE) + 0.5) * (2 * half * (1 + _CROP) / SIDE) - 0.5
    rows, columns = (top + steps)[:, None], (left + steps)[None]
    height, width = frame.shape[:2]
    outside = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    seen = np.where(outside[..., None], np.float32(_GREY), bilinear(frame, rows, columns))
    return np.ascontiguousarray(seen[..., ::-1].transpose(2, 0, 1), dtype=np.float32)
