"""A worker whose segments cost nothing: pictures that follow from the past, a block each 12 frames."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.jobs.tasks import JobEstimate, SegmentTask
from lipcast.media.audio import open_audio
from lipcast.media.video import VideoWriter

SIDE = 64


@dataclass(frozen=True)
class Drawn:
    """A block of pictures."""

    frames: np.ndarray


class CheapRenderer:
    """The state of a video is a number of blocks and a hash; a block's pictures are drawn from it.

    The fourth block is made once the file `gate` is there.
    """

    width = 1

    def __init__(self, block_s: float = 0.0, *, gate: Path | None = None) -> None:
        self._block_s, self._gate = block_s, gate
        self.made: list[int] = []

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        audio = open_audio(request["audio"])
        num_blocks = -(-audio.num_samples // (audio.sample_rate * 12 // 25))
        return JobEstimate(num_blocks, SIDE, SIDE, {"renderer": "cheap"})

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        first, state = 0, b"portrait" + (task.audio or Path()).name.encode()
        if task.snapshot is not None:
            first, state = int(task.snapshot.read_bytes()[:8]), task.snapshot.read_bytes()[8:]
        states = [state]
        for _ in range(first, task.end_block):
            states.append(hashlib.sha256(states[-1] + str(request["options"]).encode()).digest())
        edges, num_frames = task.edges, 0
        blocks = self._blocks(first, states[1:])
        with VideoWriter(
            task.video_to, width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1,
            after=task.before,
        ) as writer:  # fmt: skip
            for block in blocks if edges is None else edges.body(blocks):
                writer.write(block.frames, np.zeros((7680, 1), np.float32))
                num_frames += len(block.frames)
        if edges is None:
            task.snapshot_to.write_bytes(b"%08d" % task.end_block + states[-1])
        else:
            edges.save(task.snapshot_to)
        return {"frames": num_frames}

    def _blocks(self, first: int, states: list[bytes]) -> Iterator[Drawn]:
        for number, state in enumerate(states, first):
            dots = np.frombuffer(state[:16], np.uint8).reshape(4, 4)
            frame = np.kron(dots, np.ones((SIDE // 4, SIDE // 4), np.uint8))
            time.sleep(self._block_s)
            while self._gate is not None and len(self.made) == 3 and not self._gate.exists():
                time.sleep(0.01)
            self.made.append(number)
            yield Drawn(np.repeat(np.repeat(frame[None, ..., None], 3, axis=3), 12, axis=0))


if __name__ == "__main__":
    workspace, block_s, *gates = sys.argv[1:]
    renderer = CheapRenderer(float(block_s), gate=next(map(Path, gates), None))
    sys.exit(run_jobs(Store(Path(workspace)), renderer))
