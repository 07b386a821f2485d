"""Resident memory over a long video: it must not grow with the length.

    .venv/bin/python scripts/soak/flat_memory.py --minutes 3
    .venv/bin/python scripts/soak/flat_memory.py --minutes 60 --pass-through

With --pass-through the transformer is left out (latents are noise); sessions, rings, decoder state,
sound and the file are the real ones. Prints resident memory through the video and, last, one JSON
document. Ends with status 1 if memory at the end is 3 % above that after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import lipcast
from lipcast.api import save_blocks
from lipcast.config.models import SAMPLE_RATE
from lipcast.config.schedule import Tick
from lipcast.engine.backend import LocalBackend
from lipcast.engine.executor import LaneExecutor

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait_0.png"
LIMIT = 0.03


class PassThrough(LaneExecutor):
    """Prepares a video for real, rings and sink included, and calls the noise of a block clean."""

    def start(
        self,
        block: int,
        features_LCV: torch.Tensor,
        latent_CFHW: torch.Tensor | None = None,
        *,
        pose_CFHW: torch.Tensor | None = None,
    ) -> None:
        assert features_LCV.isfinite().all() and latent_CFHW is None and pose_CFHW is None, block

    def run(self, tick: Tick) -> list[tuple[int, torch.Tensor]]:
        last, count = self._spec.order.num_steps - 1, self._spec.geometry.latents_per_block
        done = [unit.block for unit in tick if unit.step == last]
        return [(b, self._noise.frames(self._spec.first_frame(b), count)) for b in done]

    def inputs_of(self, block: int) -> tuple[torch.Tensor, ...]:
        assert block >= 0
        return ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--pass-through", action="store_true")
    parser.add_argument("--size", default=None, help='a smaller picture, such as "64*64"')
    arguments = parser.parse_args()
    model = lipcast.load("tiny")
    if arguments.pass_through:
        model = lipcast.Lipcast(model.bundle, LocalBackend(model.bundle, make_executor=PassThrough))
    with tempfile.TemporaryDirectory() as folder:
        sound = write_sound(Path(folder) / "voice.wav", arguments.minutes * 60)
        samples = watch(model, sound, Path(folder) / "out.mp4", arguments)
    tenth = samples[max(1, len(samples) // 10)]
    growth = samples[-1] / tenth - 1
    document: dict[str, Any] = {
        "minutes": arguments.minutes,
        "pass_through": arguments.pass_through,
        "size": arguments.size,
        "num_blocks": len(samples),
        "rss_after_first_tenth_bytes": tenth,
        "rss_at_end_bytes": samples[-1],
        "growth": growth,
    }
    print(json.dumps(document))
    sys.exit(growth > LIMIT)


def watch(model: lipcast.Lipcast, sound: Path, out: Path, arguments: Any) -> list[int]:
    """Resident bytes after every block."""
    process, samples = psutil.Process(), []
    begin = time.perf_counter()
    with model.stream(image=PORTRAIT, audio=sound, size=arguments.size) as session:
        for block in save_blocks(session, out):
            samples.append(process.memory_info().rss)
            if block.index % 50 == 0:
                elapsed = time.perf_counter() - begin
                print(
                    f"block {block.index}: {samples[-1] / 2**20:.0f} MiB, {elapsed:.0f} s",
                    flush=True,
                )
    return samples


def write_sound(path: Path, seconds: float) -> Path:
    """A buzz that opens and closes four times a second, written piece by piece."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for second in range(round(seconds)):
            t = np.arange(SAMPLE_RATE) / SAMPLE_RATE + second
            tone = np.sin(2 * np.pi * 140 * t) * np.clip(np.sin(2 * np.pi * 4 * t), 0, 1) * 0.3
            file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


if __name__ == "__main__":
    main()
