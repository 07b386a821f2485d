"""Jobs on a Ray cluster of this machine; one worker is killed on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from cheap_worker import CheapRenderer
from lipcast.cli.main import main
from lipcast.errors import OutputError, UsageError
from lipcast.jobs.runner import run_jobs
from lipcast.jobs.store import Store
from lipcast.jobs.tasks import SegmentTask

# Ray's own modules warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")
ray = pytest.importorskip("ray")
NUM_WORKERS, NUM_JOBS = 2, 12
Submit = Callable[..., str]


class Breaks(CheapRenderer):
    """Fails where the seed is that of the last job; says what its plans may take."""

    def __init__(self, block_s: float = 0.0, *, ram_bytes: int | None = None) -> None:
        super().__init__(block_s)
        self._ram_bytes = ram_bytes

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        if request["options"]["seed"] == NUM_JOBS:
            raise OutputError("the disk is full; make room")
        return {**super().render(request, task), "ram_bytes": self._ram_bytes}


@pytest.fixture
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        found = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(found))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
        ray.init(
            address="local", num_cpus=NUM_WORKERS, num_gpus=NUM_WORKERS, include_dashboard=False,
            log_to_driver=False, logging_level="error", object_store_memory=80 << 20,
        )  # fmt: skip
        yield
        ray.shutdown()


def workers() -> list[psutil.Process]:
    found = psutil.process_iter(["name", "cmdline"])
    return [p for p in found if p.info["cmdline"] and "ray::RayWorker" in p.info["cmdline"][0]]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(
    cluster: None, store: Store, submit: Submit, tmp_path: Path
) -> None:
    from lipcast.jobs.ray import RayRenderer

    with pytest.raises(UsageError, match=r"need memory .* give fewer --workers"):
        RayRenderer(Breaks, address=None, num_workers=1, memory_bytes=10**15)
    with pytest.raises(UsageError, match=r"99 workers need CPU 99, .* give fewer --workers"):
        RayRenderer(Breaks, address=None, num_workers=99)
    outputs = [tmp_path / f"{number}.mp4" for number in range(NUM_JOBS + 1)]
    *names, broken = [
        submit(path, 3.0, segment_s=1.92, options={"seed": number})
        for number, path in enumerate(outputs)
    ]
    killed: list[int] = []

    def kill_one() -> None:
        while sum(job.state == "finished" for job in store.jobs()) < 3:
            time.sleep(0.02)
        killed.append(workers()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = Thread(target=kill_one)
    killer.start()
    new_renderer = partial(Breaks, 0.03)
    with RayRenderer(new_renderer, address=None, num_workers=NUM_WORKERS) as renderer:
        assert run_jobs(store, renderer, log=lambda _: None) == 1
    killer.join()
    assert len(killed) == 1
    assert store.job(broken).error == "the disk is full; make room"
    assert [(store.job(n).state, store.job(n).lease) for n in names] == [("finished", 1)] * 12
    left = {"lock", "log", "result.json"}
    assert all({path.name for path in store.folder(name).iterdir()} == left for name in names)
    share = int(ray.cluster_resources()["memory"] / NUM_WORKERS)
    assert store.segments(names[0])[0].report["ram_bytes"] == share
    for number, ours in enumerate(outputs[:2]):
        theirs = tmp_path / f"local-{number}.mp4"
        submit(theirs, 3.0, segment_s=1.92, options={"seed": number})
        assert run_jobs(store, CheapRenderer(), log=lambda _: None) == 0
        assert ours.read_bytes() == theirs.read_bytes()


def test_flags_of_the_executor_are_judged(tmp_path: Path) -> None:
    place = ("--workspace", str(tmp_path))
    for words in (
        ("--executor", "slurm"),
        ("--workers", "2"),
        ("--executor", "ray", "--workers", "0"),
    ):
        assert main(("job", "run", *words, *place)) == UsageError.exit_code


def test_gpus_of_a_node_share_its_memory() -> None:
    from lipcast.jobs.ray import WorkerShare, most_workers, worker_share

    def node(gpus: int, memory: int, *, alive: bool = True) -> dict[str, Any]:
        return {
            "Alive": alive,
            "Resources": {"CPU": 8.0, "GPU": float(gpus), "memory": float(memory)},
        }

    head = {"Alive": True, "Resources": {"CPU": 8.0, "memory": 10.0}}
    nodes = [head, node(8, 800), node(2, 120), node(1, 1, alive=False)]
    assert worker_share(nodes, num_gpus=1, memory_bytes=None) == WorkerShare(1, 60)
    assert worker_share(nodes, num_gpus=4, memory_bytes=None) == WorkerShare(4, 400)
    assert worker_share(nodes, num_gpus=1, memory_bytes=7) == WorkerShare(1, 7)
    assert worker_share([head], num_gpus=1, memory_bytes=None) == WorkerShare()
    assert most_workers([head], num_gpus=1) == 1
    three = [head, node(3, 30), node(3, 30)]
    assert [most_workers(three, num_gpus=n) for n in (1, 2, 3)] == [6, 2, 2]
    with pytest.raises(UsageError, match=r"has 4 GPUs \(the most is 3\)"):
        worker_share(three, num_gpus=4, memory_bytes=None)


def test_a_worker_plans_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcast.jobs.local import LocalRenderer

    asked: list[Any] = []
    monkeypatch.setattr(
        "lipcast.api.load", lambda *_model, **how: asked.append(how["memory_options"].ram)
    )
    for ram in (None, "3GB"):
        request: dict[str, Any] = {
            "model": "tiny", "device": None, "precision": None, "loras": (), "decoder": None,
            "options": {}, "memory": {"ram": ram}, "gpus": {},
        }  # fmt: skip
        LocalRenderer(ram_bytes=70)._load(request)
    assert asked == ["70B", "3GB"]
