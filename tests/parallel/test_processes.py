"""The command with processes of its own: what it says, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from lipcast.parallel.rank_group import spawn
from programs import started

_COMMAND = ("--device", "cpu", "--size", "64*64", "--infer_frames", "24", "--json")


def command(portrait: Path, features: Path, output: Path, *flags: str) -> list[str]:
    files = ["--image", str(portrait), "--audio", str(features), "-o", str(output)]
    return [str(Path(sys.executable).with_name("lipcast")), "generate", *files, *_COMMAND, *flags]


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_an_interrupted_command(
    portrait: Path, sound: Any, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    output = tmp_path / "out.mp4"
    line = command(portrait, sound(60.0), output, "--gpus", "2")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with started(
        line, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:  # fmt: skip
        while not output.exists() or output.stat().st_size < 20_000:
            assert process.poll() is None, "it ended before it wrote a frame"
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        process.send_signal(number)
        printed = process.communicate(timeout=120)[0]
    assert (len(ranks), process.returncode) == (2, exit_code)
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive
    assert not list(temporary.glob("lipcast-ranks-*"))
    if number != signal.SIGKILL:
        document = json.loads(printed)
        assert document["status"] == "stopped" and document["frames"] >= 12
        assert document["layout"]["gpus"] == 2
    with av.open(str(output)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 12


def test_ranks_end_while_they_load() -> None:
    """Also before a rank has read a message: its socket closes, and nothing else tells it."""
    here, there = Pipe()
    with there:
        process = spawn(0, there)
    assert process.poll() is None
    here.close()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() == -signal.SIGTERM
