"""The command with processes of its own: what it says, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import psutil

_COMMAND = ("--device", "cpu", "--size", "64*64", "--infer_frames", "24", "--json")


def command(portrait: Path, features: Path, output: Path, *flags: str) -> list[str]:
    files = ["--image", str(portrait), "--audio", str(features), "-o", str(output)]
    return [str(Path(sys.executable).with_name("lipcast")), "generate", *files, *_COMMAND, *flags]


def test_nothing_is_left_of_an_interrupted_command(
    portrait: Path, sound: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    line = command(portrait, sound(60.0), output, "--gpus", "2")
    with subprocess.Popen(
        line, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        while not output.exists() or output.stat().st_size < 20_000:
            assert process.poll() is None, "it ended before it wrote a frame"
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        told = json.loads(process.communicate(timeout=20)[0])
    assert (len(ranks), process.returncode, told["status"]) == (2, 130, "stopped")
    assert told["layout"]["gpus"] == 2 and told["frames"] >= 12
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    with av.open(str(output)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 12
