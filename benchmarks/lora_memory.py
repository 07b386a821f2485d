"""The planned and the measured memory of training adapters on a GPU, and the seconds of a step.

    .venv/bin/python benchmarks/lora_memory.py --model live-avatar-14b --weights fp8 --blocks 4

Three steps on a clip of noise; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lipcast.weights.checkpoint import checkpoint_dir
from lipcast_train.data.clips import Clip, Voice
from lipcast_train.lora.adapters import AdapterOptions
from lipcast_train.lora.training import LoraRequest, train_lora, training_precision
from lipcast_train.training.loop import Recipe
from lipcast_train.training.state import Progress

NUM_STEPS = 3


@dataclass(frozen=True)
class Noise:
    """One clip without a person."""

    side: int
    num_frames: int

    def __len__(self) -> int:
        return 1

    def voice(self, index: int) -> Voice:
        raise AssertionError(f"expected no question for the voice of clip {index}")

    def clip(self, index: int) -> Clip:
        rng = np.random.default_rng(index)
        shape = (self.num_frames, self.side, self.side, 3)
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        wave = rng.normal(0, 0.1, self.num_frames * 640).astype(np.float32)
        return Clip(frames, wave, "noise", frames[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="live-avatar-14b")
    parser.add_argument("--weights", default="fp8")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--device", default="cuda:0")
    given = parser.parse_args()
    device = torch.device(given.device)
    weights, dtype = training_precision(given.weights, device)
    times: list[float] = []

    def stepped(_: str, _progress: Progress, _steps: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            if not times:  # the encoders, which came before, are not of the plan
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        request = LoraRequest(
            model=checkpoint_dir(given.model),
            out=Path(folder) / "noise.safetensors",
            device=device,
            dtype=dtype,
            weights=weights,
            recipe=Recipe(NUM_STEPS, 1, 1e-4, weight_decay=0.0),
            available_bytes=1 << 50,
            adapters=AdapterOptions(given.rank, float(given.rank)),
            num_blocks=given.blocks,
        )
        result = train_lora(
            request, Noise(given.side, 12 * given.blocks), report=print, progress=stepped
        )
    measured = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    document = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **vars(given),
        "planned_bytes": result.memory.total,
        "measured_bytes": measured,
        "step_s": times[-1] - times[-2],
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
