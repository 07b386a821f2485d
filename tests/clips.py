"""Clips for tests: what is in them is known to the bit."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def pictures(count: int, height: int = 80, width: int = 120) -> list[np.ndarray]:
    """A disc that moves to the right, before a gradient."""
    y, x = np.mgrid[:height, :width]
    found = []
    for n in range(count):
        disc = (x - 10 - 3 * n) ** 2 + (y - 40) ** 2 < 150
        found.append(np.stack([255 * disc, 2 * x, 3 * y], axis=-1).astype(np.uint8))
    return found


def write_clip(path: Path, frames: list[np.ndarray], fps: int = 25) -> Path:
    """Lossless, so that what is read is known."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
