"""Videos of a server that is killed in the middle, and beside a live session, have the same bytes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.jobs.store import Store
from lipcast.serve.settings import ServeSettings
from lipcast.serve.video_form import VideoForm
from lipcast.serve.video_queue import VideoQueue, made_with
from sounds import EXAMPLES

pytestmark = pytest.mark.slow
SERVER = Path(__file__).with_name("video_server.py")
PORTRAIT = EXAMPLES / "portrait_0.png"


def wait(condition: Callable[[], Any], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@contextmanager
def serving(workspace: Path) -> Iterator[openai.OpenAI]:
    """A server in a process of its own, which is killed at the end."""
    command = [sys.executable, str(SERVER), str(workspace)]
    paths = os.pathsep.join([str(SERVER.parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with openai.OpenAI(api_key="unused", base_url=f"{url}v1", max_retries=0) as client:
                yield client
        finally:
            process.kill()


def test_killed_in_the_middle_the_video_has_the_same_bytes(sound: Any, tmp_path: Path) -> None:
    workspace, path = tmp_path / "videos", sound(6.0)

    def create(client: openai.OpenAI) -> str:
        with path.open("rb") as voice, PORTRAIT.open("rb") as portrait:
            form = {"input_reference": portrait, "audio_reference": voice}
            answer = client._client.post(f"{client.base_url}videos", files=form)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with serving(workspace) as client:
            whole = client.videos.poll(create(client), poll_interval_ms=50)
            assert whole.status == "completed"
            expected = client.videos.download_content(whole.id).read()
            name, store = create(client), Store(workspace)
            wait(lambda: len(store.segments(name)) >= 2)
        done = store.segments(name)
        assert store.job(name).state == "running" and len(done) < 7
        with serving(workspace) as client:
            assert client.videos.poll(name, poll_interval_ms=50).status == "completed"
            assert client.videos.download_content(name).read() == expected
    now = store.segments(name)
    assert store.job(name).lease == 2 and all(now[n] == segment for n, segment in done.items())


def test_beside_a_live_session_a_video_has_the_same_bytes(
    quick: lipcast.Lipcast, sound: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast.serve.video_queue._GIVE_WAY_S", 0.0)
    options = GenerateOptions(size="64*64", sample_steps=1)
    settings = ServeSettings(workspace=tmp_path / "videos", segment_s=0.48)
    queue = VideoQueue(settings, options=options, made_with=made_with())

    def make() -> bytes:
        voice = io.BytesIO(sound(0.96).read_bytes())
        job = queue.add(VideoForm("calm", options, None, PORTRAIT.read_bytes(), voice))
        wait(lambda: queue.store.job(job.id).state in {"finished", "failed"})
        assert queue.store.job(job.id).error == ""
        return (queue.store.folder(job.id) / "video.mp4").read_bytes()

    queue.start(quick)
    alone = make()
    num_frames = 0
    with quick.live(image=str(PORTRAIT), options=options) as live:
        noise = np.random.default_rng(1).normal(0, 0.1, 48_000 * 20).astype(np.float32)
        live.push_audio(noise, sample_rate=48_000)

        def watch() -> None:
            nonlocal num_frames
            num_frames = sum(1 for _ in live)

        watcher = threading.Thread(target=watch)
        watcher.start()
        wait(lambda: live.stats().num_frames_made > 0)
        made = live.stats().num_frames_made
        together = make()
        assert live.stats().num_frames_made > made
        live.close()
        watcher.join()
    queue.stop()
    assert num_frames > 0 and together == alone
