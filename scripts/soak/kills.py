"""Workers killed with -9 at random moments: every video must be that of an undisturbed run, byte for byte.

    .venv/bin/python scripts/soak/kills.py --kills 50
    .venv/bin/python scripts/soak/kills.py --kills 6 --model

Segments are those of a stand-in (tests/cheap_worker.py), or of the embedded model (--model). A moment is
counted from when the worker has begun: so no kill is wasted on a start. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from seams import EXAMPLES, long_voice

from lipcast.cli.main import main as lipcast
from lipcast.jobs.store import Store

STAND_IN = Path(__file__).parents[2] / "tests" / "cheap_worker.py"
SEGMENT_BLOCKS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=24)
    parser.add_argument("--model", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments), indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    voice, store = long_voice(folder / "voice.wav", arguments.seconds), Store(folder / "jobs")
    command = [sys.executable, str(STAND_IN), str(store.workspace), "0.1"]
    if arguments.model:
        run = "from lipcast.cli.main import run; run()"
        command = [sys.executable, "-c", run, "job", "run", "--quiet"]
        command += ["--workspace", str(store.workspace)]
    name = submit(folder, voice, "whole.mp4")
    lasts_s = run_until(command, store, name, None)
    whole = (folder / "whole.mp4").read_bytes()
    moments, killed, videos = random.Random(50), Counter[str](), 0
    while killed.total() < arguments.kills:
        output = f"{videos}.mp4"
        name, videos = submit(folder, voice, output), videos + 1
        finished: dict[int, Any] = {}
        while store.job(name).state != "finished":
            is_enough = killed.total() >= arguments.kills
            wait_s = None if is_enough else moments.uniform(0, 1.05) * lasts_s
            if run_until(command, store, name, wait_s) < 0:
                killed[where(store, name)] += 1
            now = store.segments(name)
            assert all(now[key] == segment for key, segment in finished.items()), "made twice"
            finished = now
        assert (folder / output).read_bytes() == whole, output
    return {"kills": killed.total(), "videos": videos, "while": dict(killed), "identical": True}


def submit(folder: Path, voice: Path, output: str) -> str:
    words = [
        "job", "submit", "--image", EXAMPLES / "portrait_0.png", "--audio", voice, "-o",
        folder / output, "--size", "64*64", "--infer_frames", "16", "--segment",
        f"{SEGMENT_BLOCKS * 0.48}s", "--workspace", folder / "jobs", "--quiet", "--device", "cpu",
    ]  # fmt: skip
    assert lipcast([str(word) for word in words]) == 0
    return Store(folder / "jobs").jobs()[-1].id


def run_until(command: list[str], store: Store, name: str, wait_s: float | None) -> float:
    """Run a worker; kill it so long after it has begun. Seconds it took, or -1 where it was killed."""
    leases = store.job(name).lease
    with subprocess.Popen(command) as worker:
        while store.job(name).lease == leases and worker.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        try:
            worker.wait(wait_s)
        except subprocess.TimeoutExpired:
            worker.kill()
            return -1
        assert worker.returncode == 0
        return time.monotonic() - began


def where(store: Store, name: str) -> str:
    """What was under way: a segment, or the joining of all."""
    job = store.job(name)
    if job.state == "finished":
        return "after the end"
    return "joining" if len(store.segments(name)) == job.num_segments else "a segment"


if __name__ == "__main__":
    main()
