"""The command with processes of its own: what it prints, and what it leaves behind."""

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


def command(portrait: Path, voice: Path, output: Path, *flags: str) -> list[str]:
    files = ["--image", str(portrait), "--audio", str(voice), "-o", str(output)]
    return [str(Path(sys.executable).with_name("lipcast")), "generate", *files, *_COMMAND, *flags]


def test_two_stages_by_one_command(portrait: Path, sound: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    line = command(portrait, sound(1.0), output, "--num_gpus_dit", "2", "--ulysses_size", "1")
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["frames"] == 25 and told["layout"]["layout"] == "2 stages, last stage decodes"
    assert [rank["rank"] for rank in told["ranks"]] == ["stage 0", "stage 1"]
    assert "the bottleneck is stage" in told["bottleneck"] and told["bottleneck"] in done.stderr


def test_nothing_is_left_of_an_interrupted_command(
    portrait: Path, sound: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    line = command(portrait, sound(60.0), output, "--gpus", "2")
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not output.exists() or output.stat().st_size < 20_000:
            assert process.poll() is None, "it ended before it wrote a frame"
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        status = process.wait(20)
    assert (len(ranks), status) == (2, 130)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    with av.open(str(output)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 12
