"""Segments made by workers of a Ray cluster; the store and the order of work stay where `job run` is.

Input: an address, a number of workers, what each may take. Output: a `SegmentRenderer` that hands every
segment to an idle worker. A worker is an actor: it loads its model once and keeps it. Ray starts one that
died again, on another node if need be, and gives it its segment again. Files go by path: the
workspace, the inputs and the outputs must be on a file system that all nodes share. SQLite and the locks of
jobs are used on this machine only, since SQLite's log does not work over networks.
"""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from lipcast.config.closing import Closing
from lipcast.errors import LipcastError, UsageError
from lipcast.jobs.tasks import JobEstimate, SegmentRenderer, SegmentTask

_TRIES_AGAIN = 3
"""How often a call is made again whose worker died: a segment that kills every worker must fail once."""


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """Resources of a node that one worker gets."""

    num_gpus: float = 0
    memory_bytes: int | None = None
    num_cpus: float = 1

    def options(self) -> dict[str, Any]:
        """Return the share as options of a Ray actor."""
        memory = {} if self.memory_bytes is None else {"memory": self.memory_bytes}
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus, **memory}


def worker_share(
    nodes: Sequence[Mapping[str, Any]], *, num_gpus: int, memory_bytes: int | None
) -> WorkerShare:
    """Return what each worker takes of a node, from `ray.nodes()`.

    By default a node's memory is shared out evenly among its GPUs: plans of two workers must not count
    on the same memory.
    """
    hosts = _hosts(nodes, num_gpus)
    if not hosts:
        return WorkerShare(memory_bytes=memory_bytes)
    evenly = min(int(host["memory"] * num_gpus / host["GPU"]) for host in hosts)
    return WorkerShare(num_gpus, evenly if memory_bytes is None else memory_bytes)


def most_workers(nodes: Sequence[Mapping[str, Any]], *, num_gpus: int) -> int:
    """Return how many workers fit: by the GPUs of each node, or one per node without any."""
    hosts = _hosts(nodes, num_gpus)
    return sum(int(host["GPU"]) // num_gpus for host in hosts) if hosts else len(nodes)


def _hosts(nodes: Sequence[Mapping[str, Any]], num_gpus: int) -> list[Mapping[str, Any]]:
    """Return resources of the nodes that fit a worker; none where no node has a GPU. Raises UsageError."""
    have = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]
    fit = [host for host in have if host["GPU"] >= num_gpus]
    if have and not fit:
        most = max(host["GPU"] for host in have)
        raise UsageError(
            f"no node of the Ray cluster has {num_gpus} GPUs (the most is {most:g}); submit with fewer --gpus"
        )
    return fit


class RayWorker:
    """Runs as an actor, with a renderer of its own."""

    def __init__(self, new_renderer: Callable[[], SegmentRenderer]) -> None:
        self._renderer = new_renderer()

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        return self._renderer.estimate(request)

    def render(
        self, request: Mapping[str, Any], task: SegmentTask
    ) -> tuple[SegmentTask, dict[str, Any]]:
        """Make a segment under names of this attempt's own; returns them too.

        A node that is only taken for dead may go on to write while another makes the same segment.
        """
        own = secrets.token_hex(4)
        attempt = replace(
            task,
            video_to=task.video_to.with_stem(f"{task.video_to.stem}-{own}"),
            snapshot_to=task.snapshot_to.with_stem(f"{task.snapshot_to.stem}-{own}"),
        )
        node = ray.get_runtime_context().get_node_id()
        return attempt, {"node": node, **self._renderer.render(request, attempt)}


class RayRenderer(Closing):
    """A `SegmentRenderer` for as many threads as there are workers. A context manager."""

    def __init__(
        self,
        new_renderer: Callable[..., SegmentRenderer],
        *,
        address: str | None,
        num_workers: int | None = None,
        memory_bytes: int | None = None,
        num_gpus: int = 1,
    ) -> None:
        """address: of a running cluster ("auto", "host:6379"); None starts one on this machine.

        num_workers: None takes as many as the cluster has GPUs for, or one per node where there is none.
        memory_bytes, num_gpus: what each worker is given of its node; GPUs only where there are any, and with
        them an even share of memory if nothing is said. That is then what `new_renderer` is called with, as
        `ram_bytes`, so that its plans keep to it.
        Raises UsageError where no cluster answers, or has no such worker to give.
        """
        self._began = _join(address)
        try:
            self.share = worker_share(ray.nodes(), num_gpus=num_gpus, memory_bytes=memory_bytes)
            most = most_workers(ray.nodes(), num_gpus=num_gpus)
            self.width = num_workers or most
            self._check_share(most)
        except UsageError:
            self.close()
            raise
        if self.share.num_gpus:
            new_renderer = partial(new_renderer, ram_bytes=self.share.memory_bytes)
        actor = ray.remote(RayWorker).options(
            max_restarts=-1, max_task_retries=_TRIES_AGAIN, **self.share.options()
        )
        self._workers = [actor.remote(new_renderer) for _ in range(self.width)]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        with self._worker() as worker:
            return cast("JobEstimate", _result(worker.estimate.remote(request)))

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        with self._worker() as worker:
            made, report = _result(worker.render.remote(request, task))
        for written, wanted in (
            (made.snapshot_to, task.snapshot_to), (made.video_to, task.video_to)
        ):  # fmt: skip
            Path(written).replace(wanted)
        return cast("Mapping[str, Any]", report)

    @contextmanager
    def _worker(self) -> Iterator[Any]:
        """Wait for an idle worker and yield it."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def _check_share(self, most: int) -> None:
        """Raise UsageError for actors that fit no node, which would be waited for without end."""
        have, num = ray.cluster_resources(), self.width
        wanted = {"CPU": self.share.num_cpus * num, "memory": (self.share.memory_bytes or 0) * num}
        if self.share.num_gpus and num > most:
            wanted["GPU"] = self.share.num_gpus * num
            have["GPU"] = self.share.num_gpus * most
        for name, amount in wanted.items():
            if amount > have.get(name, 0):
                raise UsageError(
                    f"{num} workers need {name} {amount:g}, the Ray cluster has "
                    f"{have.get(name, 0):g}; give fewer --workers, or add nodes"
                )

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in getattr(self, "_workers", ()):
            with suppress(ray.exceptions.RayError):
                ray.kill(worker)
        if self._began:
            ray.shutdown()


def _join(address: str | None) -> bool:
    """Connect to Ray; returns whether that was needed."""
    if ray.is_initialized():
        return False
    here = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--address: no Ray cluster answers at {address!r}: {error}; "
            "start one with `ray start --head`, or leave --address out"
        ) from error
    return True


def _result(reference: Any) -> Any:
    """Return what a worker returned, or raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise LipcastError(
            f"the worker of a segment died {_TRIES_AGAIN + 1} times "
            f"({type(error).__name__}); see Ray's logs, and give it more memory, then retry"
        ) from error
