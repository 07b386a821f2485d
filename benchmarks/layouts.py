"""Layouts of several processes on this machine's CPU: how fast, and whether the prediction ranks them right.

    .venv/bin/python benchmarks/layouts.py [--seconds 12] [--size "256*256"]

Every process has one thread, like one device. First one process alone is measured, by part; from that the
layouts are predicted, with the arithmetic of `lipcast plan --gpus`; then each is run. One process with two
threads is shown beside them: what two cores do without a pipeline. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lipcast
from lipcast.planning.layouts import Layout, LayoutPlan, RankPlan, stage_steps

PORTRAIT = Path(__file__).parents[1] / "examples" / "portrait_0.png"
WARM_UP_BLOCKS = 6
LAYOUTS: tuple[tuple[Layout, dict[str, Any]], ...] = (
    (Layout(2, 1, sharded=False, vae_rank=False), {"num_gpus_dit": 2, "ulysses_size": 1}),
    (
        Layout(1, 1, sharded=False, vae_rank=True),
        {"num_gpus_dit": 1, "enable_vae_parallel": True},
    ),
    (Layout(1, 2, sharded=False, vae_rank=False), {"ulysses_size": 2}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="length of each video")
    parser.add_argument("--size", default=None, help='a smaller picture, such as "128*128"')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voice = write_voice(Path(folder) / "voice.wav", arguments.seconds)
        options = {"image": PORTRAIT, "audio": voice, "size": arguments.size}
        document = measure(options)
    print_table(document)
    print(json.dumps(document))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """One process, then every layout, in one run."""
    torch.set_num_threads(1)
    alone, parts = run({}, options)
    torch.set_num_threads(2)
    threads, _ = run({}, options)
    rows = []
    for layout, flags in LAYOUTS:
        block_s, _ = run(flags, options)
        predicted_s = predict(layout, parts).block_s
        rows.append({"layout": str(layout), "predicted_s": predicted_s, "measured_s": block_s})
    by = {key: sorted(rows, key=lambda row: row[key]) for key in ("predicted_s", "measured_s")}
    return {
        "machine": {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
        },
        "parts_s": parts,
        "one_process_s": alone,
        "one_process_two_threads_s": threads,
        "layouts": rows,
        "order_agrees": by["predicted_s"] == by["measured_s"],
    }


def run(flags: dict[str, Any], options: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Median seconds between two blocks after the warm-up, and seconds per block by part."""
    with (
        lipcast.load("tiny", device="cpu", **flags) as model,
        model.stream(**options) as session,
    ):
        laps, parts = [], []
        before = time.perf_counter()
        for block in session:
            laps.append(time.perf_counter() - before)
            before = time.perf_counter()
            parts.append((block.timings.dit_s, block.timings.vae_s))
        steps = session.spec.order.num_steps
    dit_s, vae_s = np.median(np.array(parts[WARM_UP_BLOCKS:]), axis=0)
    found = {"dit_s": float(dit_s), "vae_s": float(vae_s), "num_steps": steps}
    return float(np.mean(laps[WARM_UP_BLOCKS:-2])), found


def predict(layout: Layout, parts: dict[str, Any]) -> LayoutPlan:
    """A layout of devices that are as fast as one thread, with nothing lost between them."""
    step_s = parts["dit_s"] / parts["num_steps"] / layout.ulysses
    stages = stage_steps(parts["num_steps"], layout.stages)
    ranks = []
    for number, steps in enumerate(stages):
        decodes = not layout.vae_rank and number == layout.stages - 1
        busy_s = len(steps) * step_s + (parts["vae_s"] if decodes else 0.0)
        ranks.append(RankPlan(f"stage {number}", steps, layout.ulysses, (), 0, busy_s, None))
    if layout.vae_rank:
        ranks.append(RankPlan("decoder", (), 1, (), 0, parts["vae_s"], None))
    return LayoutPlan(layout, tuple(ranks), video_frames_per_block=12)


def print_table(document: dict[str, Any]) -> None:
    alone = document["one_process_s"]
    print(f"machine: {document['machine']}")
    print(f"one process, one thread: {alone:.3f} s per block ({document['parts_s']})")
    two = document["one_process_two_threads_s"]
    print(f"one process, two threads: {two:.3f} s per block, {alone / two:.2f} times as fast")
    for row in document["layouts"]:
        measured, predicted = row["measured_s"], row["predicted_s"]
        print(
            f"{row['layout']}: {measured:.3f} s per block, {alone / measured:.2f} times as fast "
            f"(predicted {predicted:.3f} s, {alone / predicted:.2f})"
        )
    print(f"predicted and measured order agree: {document['order_agrees']}")


def write_voice(path: Path, seconds: float) -> Path:
    """A tone that swells four times a second."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * 180 * t) * np.clip(np.sin(8 * np.pi * t), 0, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


if __name__ == "__main__":
    main()
