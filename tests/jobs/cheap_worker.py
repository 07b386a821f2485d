"""A worker whose segments cost nothing: pictures that follow from the past, a block each 12 frames."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipcast.jobs.runner import Outlook, Stretch, run_jobs
from lipcast.jobs.store import Store
from lipcast.media.audio import open_audio
from lipcast.media.video import VideoWriter

SIDE = 64


class CheapMaker:
    """The state of a video is a number of blocks and a hash; a block's pictures are drawn from it."""

    width = 1

    def __init__(self, block_s: float = 0.0) -> None:
        self._block_s = block_s
        self.made: list[int] = []

    def look(self, request: Mapping[str, Any]) -> Outlook:
        audio = open_audio(request["audio"])
        num_blocks = -(-audio.num_samples // (audio.sample_rate * 12 // 25))
        return Outlook(num_blocks, SIDE, SIDE, {"maker": "cheap"})

    def make(self, request: Mapping[str, Any], stretch: Stretch) -> Mapping[str, Any]:
        first, state = 0, b"portrait"
        if stretch.past is not None:
            first, state = int(stretch.past.read_bytes()[:8]), stretch.past.read_bytes()[8:]
        with VideoWriter(
            stretch.video_to, width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1
        ) as writer:
            for block in range(first, stretch.end_block):
                state = hashlib.sha256(state + str(request["options"]).encode()).digest()
                dots = np.frombuffer(state[:16], np.uint8).reshape(4, 4)
                frame = np.repeat(
                    np.kron(dots, np.ones((SIDE // 4, SIDE // 4), np.uint8))[..., None], 3, axis=2
                )
                writer.write(np.repeat(frame[None], 12, axis=0), np.zeros((7680, 1), np.float32))
                time.sleep(self._block_s)
                self.made.append(block)
        stretch.past_to.write_bytes(b"%08d" % stretch.end_block + state)
        return {"frames": 12 * (stretch.end_block - first)}


if __name__ == "__main__":
    sys.exit(run_jobs(Store(Path(sys.argv[1])), CheapMaker(float(sys.argv[2]))))
