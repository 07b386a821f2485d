"""Twelve short videos by two Ray workers, and by the local executor: seconds of both.

    .venv/bin/python scripts/soak/ray_jobs.py --kill

With --kill one worker is killed with -9 after the third video. All videos must be done, each once, and be
those of the local executor byte for byte; for that they are made locally once more, with as many threads as a
worker has, since sums of other lengths round otherwise. The embedded model makes them. Prints, last, one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

import psutil
import torch

from lipcast.cli.main import main as lipcast
from lipcast.jobs.local import LocalRenderer
from lipcast.jobs.ray import RayRenderer
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.jobs.tasks import SegmentRenderer

EXAMPLES = Path(__file__).parents[2] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.videos, arguments.workers, kill=arguments.kill)
    print(json.dumps(found))
    sys.exit(not found["same"])


def measure(folder: Path, num_videos: int, num_workers: int, *, kill: bool) -> dict[str, object]:
    places = ("ray", "local", "like_a_worker")
    stores = {name: filled(folder / name, num_videos) for name in places}
    began = time.perf_counter()
    with RayRenderer(LocalRenderer, address=None, num_workers=num_workers) as renderer:
        started_s = time.perf_counter() - began
        if kill:
            Thread(target=kill_one, args=(stores["ray"],)).start()
        ray_s = timed(stores["ray"], renderer)
    local_s = timed(stores["local"], LocalRenderer())
    torch.set_num_threads(1)  # Ray gives an actor as many as it has CPUs
    timed(stores["like_a_worker"], LocalRenderer())
    compared = ("ray", "like_a_worker")
    pairs = [[folder / name / f"{i}.mp4" for name in compared] for i in range(num_videos)]
    same = all(ours.read_bytes() == theirs.read_bytes() for ours, theirs in pairs)
    once = all((j.state, j.lease) == ("finished", 1) for j in stores["ray"].jobs())
    return {
        "videos": num_videos, "workers": num_workers, "killed": int(kill), "cores": os.cpu_count(),
        "ray_start_s": round(started_s, 1), "ray_s": round(ray_s, 1), "local_s": round(local_s, 1),
        "each_once": once, "same": same and once,
    }  # fmt: skip


def filled(folder: Path, num_videos: int) -> Store:
    """A workspace with jobs of two segments."""
    folder.mkdir()
    batch = folder / "batch.jsonl"
    rows = [{"output": str(folder / f"{i}.mp4"), "base_seed": i} for i in range(num_videos)]
    batch.write_text("\n".join(map(json.dumps, rows)))
    words = "job submit --size 64*64 --infer_frames 16 --segment 3s --precision fp32 --device cpu --quiet"
    files = ("--image", EXAMPLES / "portrait_0.png", "--audio", EXAMPLES / "speech_a_male.wav")
    places = ("--batch", batch, "--workspace", folder / "jobs", "--json")
    assert lipcast([*words.split(), *map(str, (*files, *places))]) == 0
    return Store(folder / "jobs")


def timed(store: Store, renderer: SegmentRenderer) -> float:
    began = time.perf_counter()
    assert run_jobs(store, renderer, log=lambda line: print(line, file=sys.stderr)) == 0
    return time.perf_counter() - began


def kill_one(store: Store) -> None:
    while sum(job.state == "finished" for job in store.jobs()) < 3:
        time.sleep(0.1)
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and "ray::RayWorker" in process.info["cmdline"][0]:
            os.kill(process.pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    main()
