"""`lipcast job ...`: videos made segment by segment, which continue after an interruption.

Input: the options of `generate`, or a batch of them. Output: jobs in a workspace; what became of them as
lines or as one JSON document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipcast.cli.batch import read_batch
from lipcast.cli.command import Group, Option, Section, command, switch
from lipcast.cli.concat_split import HLS
from lipcast.cli.console import Console, print_json
from lipcast.cli.job_request import as_job
from lipcast.cli.long_video import MeteredRenderer
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.options import JSON_QUIET_DEBUG, OPTIONS
from lipcast.cli.request import read_request
from lipcast.cli.types import COUNT, FILE, FOLDER
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.units import parse_bytes
from lipcast.env import cache_dir
from lipcast.errors import LipcastError, UsageError

if TYPE_CHECKING:
    from lipcast.jobs.store import Job, Segment, Store
    from lipcast.jobs.tasks import SegmentRenderer

_WORKSPACE = Option(
    "workspace", "Folder of the jobs.",
    section=Section.FILES, type=FOLDER, show_default="in the user's cache",
)  # fmt: skip
_BATCH = (
    Option(
        "batch",
        "Table of many jobs, with columns named like options: CSV as spreadsheets save it, or JSON. "
        "Relative paths count from its folder.",
        section=Section.FILES, type=FILE,
    ),
    switch("keep_segments", "Keep the segments when the video is done.", section=Section.FILES),
    switch(
        "independent_segments",
        "Start every segment from the portrait, so that segments can be made in parallel; cross-fade between "
        "them.",
        section=Section.FILES,
    ),
    HLS,
    Option(
        "webhook", "URL that gets a POST of JSON when a job ends.",
        section=Section.FILES, metavar="URL",
    ),
)  # fmt: skip
_EXECUTORS = ("local", "ray")
_NAME = click.Argument(["name"], metavar="JOB", help="Name of the job.")
_COMMON = (_WORKSPACE, *JSON_QUIET_DEBUG)

job = Group("job", help="Make videos that continue after an interruption.")


@command(
    "submit",
    (*OPTIONS, _WORKSPACE, *_BATCH),
    given_only=True,
    examples=(
        "lipcast job submit --image me.png --audio hello.wav -o out.mp4 --segment 60s",
        'lipcast job submit --batch jobs.csv --size "384*256"',
    ),
)
def submit(console: Console, **flags: Any) -> None:
    """Add a job, or many with --batch. All options of `generate` apply."""
    from lipcast.jobs.webhook import check_url

    how = {
        "keep_segments": flags.get("keep_segments", False),
        "independent": flags.get("independent_segments", False),
        "hls": flags.get("hls", False),
        "webhook": check_url(flags["webhook"]) if "webhook" in flags else None,
    }
    if "batch" in flags:
        requests, jobs = read_batch(flags["batch"], flags, how)
    else:
        requests = [read_request(flags)]
        jobs = [as_job(requests[0], **how)]
    automatic = {n for n, each in enumerate(requests) if "output" in each.randomised_fields}
    names = _store(flags.get("workspace")).submit(jobs, automatic=automatic)
    console.result({"status": "submitted", "jobs": names}, "\n".join(names))


@command(
    "run",
    (
        Option(
            "job", "Only this job.",
            section=Section.FILES, metavar="JOB", show_default="all that wait",
        ),
        Option(
            "executor", "Where segments are made: local, in this process; ray, by workers of a cluster.",
            section=Section.COMPUTE, type=click.Choice(_EXECUTORS), default="local", show_default=True,
        ),
        Option(
            "address", "Address of the Ray cluster: auto, or host:6379.",
            section=Section.COMPUTE, metavar="ADDRESS", show_default="start a cluster here",
        ),
        Option(
            "workers", "Number of Ray workers, each with a model of its own.",
            section=Section.COMPUTE, type=COUNT, metavar="N",
            show_default="one per GPU; without GPUs one per node",
        ),
        *_COMMON,
    ),
    when_stopped="finished segments are kept, and `lipcast job run` continues",
    examples=("lipcast job run", "lipcast job run --executor ray --address auto"),
)  # fmt: skip
def run(
    console: Console,
    *,
    job: str | None,
    executor: str,
    address: str | None,
    workers: int | None,
    workspace: Path | None,
) -> None:
    """Run the jobs that wait, and those whose worker is gone, until none is left.

    Several of these may run at the same time, each on its own GPU (--device is an option of submit).
    """
    from lipcast.jobs.runner import run_jobs

    store = _store(workspace)
    if job is not None:
        store.job(job)
    for name, value in (("address", address), ("workers", workers)):
        if value is not None and executor != "ray":
            raise UsageError(f"--{name}: needs --executor ray beside it")
    meter = Meter()
    with ProgressBar(meter, wanted=not console.quiet) as bar:
        local = closing(MeteredRenderer(meter, bar))
        with local if executor == "local" else _ray(store, address, workers) as renderer:
            num_failed = run_jobs(store, renderer, name=job, log=console.log)
    if console.as_json:
        print_json({"jobs": _documents(store)})
    if num_failed:
        raise LipcastError(f"{num_failed} jobs failed; see `lipcast job list`")


@contextmanager
def _ray(store: Store, address: str | None, num_workers: int | None) -> Iterator[SegmentRenderer]:
    """Yield what makes segments on a Ray cluster; raises UsageError where Ray is not installed."""
    try:
        from lipcast.jobs.local import LocalRenderer
        from lipcast.jobs.ray import RayRenderer
    except ImportError as error:
        raise UsageError(
            "--executor ray: Ray is not installed; pip install 'lipcast[ray]'"
        ) from error
    with RayRenderer(
        LocalRenderer,
        address=address,
        num_workers=num_workers,
        memory_bytes=_largest_budget(store),
        num_gpus=_most_gpus(store),
    ) as renderer:
        yield renderer


def _largest_budget(store: Store) -> int | None:
    """Return the most host memory that a job's --ram allows, in bytes; None where no job has --ram."""
    budgets = [job.request["memory"]["ram"] for job in _unfinished(store)]
    return max((parse_bytes(budget) for budget in budgets if budget), default=None)


def _most_gpus(store: Store) -> int:
    """Return the most GPUs that a job asks for."""
    return max(
        (GpuOptions(**job.request["gpus"]).num_gpus for job in _unfinished(store)), default=1
    )


def _unfinished(store: Store) -> list[Job]:
    """Return the jobs that a worker may still make."""
    from lipcast.jobs.store import RUNNING, WAITING

    return store.jobs((WAITING, RUNNING))


@command("list", _COMMON)
def list_jobs(console: Console, *, workspace: Path | None) -> None:
    """List the jobs: name, state, finished segments, output."""
    documents = _documents(_store(workspace))
    lines = []
    for found in documents:
        num_segments = "?" if found["num_segments"] is None else found["num_segments"]
        done = f"{len(found['segments'])}/{num_segments}"
        where = f"{found['output']}  {found['error']}"
        lines.append(f"{found['job']}  {found['state']:<9}  {done:>7}  {where}")
    if documents or console.as_json:
        console.result({"jobs": documents}, "\n".join(lines))


@command(
    "watch",
    (switch("once", "Print one table and end.", section=Section.CONSOLE), *_COMMON),
)
def watch(console: Console, *, once: bool, workspace: Path | None) -> None:
    """Show the jobs while they run: state, segments, frames a second, time left.

    Ends when no job waits or runs: with exit code 0 if none has failed, else with 1.
    """
    from lipcast.cli.watch import watch_jobs

    watch_jobs(_store(workspace), console, once=once)


@command("show", (_NAME, *_COMMON))
def show(_console: Console, *, name: str, workspace: Path | None) -> None:
    """Print everything about one job as one JSON document."""
    store = _store(workspace)
    found = store.job(name)
    print_json(_document(found, store.segments(found.id)) | {"request": dict(found.request)})


@command("cancel", (_NAME, *_COMMON))
def cancel(_console: Console, *, name: str, workspace: Path | None) -> None:
    """End a job. Its worker stops after the segment in flight; finished segments stay."""
    _store(workspace).cancel(name)


@command("retry", (_NAME, *_COMMON))
def retry(_console: Console, *, name: str, workspace: Path | None) -> None:
    """Let a failed or cancelled job continue from its finished segments at the next `job run`."""
    _store(workspace).retry(name)


@command("rm", (_NAME, *_COMMON))
def remove(_console: Console, *, name: str, workspace: Path | None) -> None:
    """Forget a job and its segments; the finished video stays."""
    _store(workspace).remove(name)


for _subcommand in (submit, run, list_jobs, watch, show, cancel, retry, remove):
    job.add_command(_subcommand)


def _store(workspace: Path | None) -> Store:
    from lipcast.jobs.store import Store

    return Store(workspace or cache_dir() / "jobs")


def _documents(store: Store) -> list[dict[str, Any]]:
    segments = store.all_segments()
    return [_document(job, segments.get(job.id, {})) for job in store.jobs()]


def _document(job: Job, segments: Mapping[int, Segment]) -> dict[str, Any]:
    return {
        "job": job.id,
        "state": job.state,
        "error": job.error,
        "output": job.request["output"],
        "num_segments": job.num_segments,
        "segments": [
            {"number": number, "sha256": segments[number].sha256, **segments[number].report}
            for number in sorted(segments)
        ],
    }
