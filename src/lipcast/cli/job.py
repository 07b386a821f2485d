"""`lipcast job ...`: videos made segment by segment, which go on after whatever ended them.

Input: the flags of `generate`, or a batch of them. Output: jobs in a workspace; what became of them as
lines or as one JSON document.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lipcast.cli.concat_split import HLS
from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.job_request import as_job
from lipcast.cli.long_video import MeteredMaker
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.options import Positional, either_spelling, with_flags
from lipcast.cli.request import read_request
from lipcast.cli.validate import RawFlags
from lipcast.env import cache_dir
from lipcast.errors import InputError, LipcastError, UsageError
from lipcast.planning.gpu_options import GpuOptions
from lipcast.planning.hardware import parse_bytes

if TYPE_CHECKING:
    from lipcast.jobs.store import Job, Segment, Store
    from lipcast.jobs.tasks import SegmentMaker

_NAME = Positional("job", "The name of the job.")
_WORKSPACE = Flag(
    "workspace", Group.FILES, Kind.TEXT, "The folder of the jobs.", default="in the user's cache"
)
_TALK = tuple(flag for flag in FLAGS if flag.name in {"json", "quiet", "debug"})
_OWN = (
    _WORKSPACE,
    Flag(
        "batch", Group.FILES, Kind.TEXT,
        "Many jobs: a CSV or JSON lines file, its columns named like flags.",
    ),
    Flag("keep_segments", Group.FILES, Kind.SWITCH, "Keep the segments when the video is done."),
    Flag(
        "independent_segments", Group.FILES, Kind.SWITCH,
        "Begin every segment with the portrait, so that they can be made side by side; fade between them.",
    ),
    HLS,
    Flag("webhook", Group.FILES, Kind.TEXT, "URL that is told, as JSON, when a job ends."),
)  # fmt: skip
SUBMIT_FLAGS = (*_OWN, *FLAGS)
EXECUTORS = ("local", "ray")
RUN_FLAGS = (
    _WORKSPACE,
    Flag("job", Group.FILES, Kind.TEXT, "Only this job.", default="all that wait"),
    Flag(
        "executor",
        Group.MACHINE,
        Kind.TEXT,
        "Who makes segments: local, this process; ray, workers of a cluster.",
        default="local",
    ),
    Flag(
        "address",
        Group.MACHINE,
        Kind.TEXT,
        "Of the Ray cluster: auto, host:6379.",
        default="one is started here",
    ),
    Flag(
        "workers",
        Group.MACHINE,
        Kind.WHOLE_VIDEO,
        "Ray workers, each with a model of its own.",
        default="one per GPU; without any, one per node",
    ),
    *_TALK,
)
JOB_FLAGS = (_WORKSPACE, *_TALK)
WATCH_FLAGS = (
    _WORKSPACE,
    Flag("once", Group.TALK, Kind.SWITCH, "Print one table and end."),
    *_TALK,
)


def submit(given: Mapping[str, RawFlags]) -> None:
    """Add a job, or with --batch many: all flags of `generate`, and how long a segment is.

    lipcast job submit --image me.png --audio hello.wav -o out.mp4 --segment 60s
    """
    from lipcast.jobs.webhook import check_url

    talk = Console.begin(given)
    own = {flag.name for flag in _OWN}
    shared = {name: value for name, value in given.items() if name not in own}
    rows = _rows(Path(str(given["batch"])).expanduser()) if "batch" in given else [{}]
    how = {
        "keep_segments": bool(given.get("keep_segments")),
        "independent": bool(given.get("independent_segments")),
        "hls": bool(given.get("hls")),
        "webhook": check_url(str(given["webhook"])) if "webhook" in given else None,
    }
    requests = [as_job(read_request(shared | row), **how) for row in rows]
    names = _store(given).submit(requests)
    if talk.as_json:
        print_json({"status": "submitted", "jobs": names})
    else:
        typer.echo("\n".join(names))


def run(given: Mapping[str, RawFlags]) -> None:
    """Work at the jobs that wait, and at those whose worker is gone, until none is left.

    Several of these may run at the same time, each on its own GPU (--device is a flag of submit).

        lipcast job run
        lipcast job run --executor ray --address auto
    """
    from lipcast.jobs.runner import run_jobs

    talk, store = Console.begin(given), _store(given)
    name = str(given["job"]) if "job" in given else None
    if name is not None:
        store.job(name)
    meter = Meter()
    with (
        ProgressBar(meter, wanted=not talk.quiet) as bar,
        _maker(given, store, meter, bar) as maker,
    ):
        num_failed = run_jobs(store, maker, name=name, tell=talk.note)
    if talk.as_json:
        print_json({"jobs": _documents(store)})
    if num_failed:
        raise LipcastError(f"{num_failed} jobs failed; see `lipcast job list`")


@contextmanager
def _maker(
    given: Mapping[str, RawFlags], store: Store, meter: Meter, bar: ProgressBar
) -> Iterator[SegmentMaker]:
    """What makes segments; raises UsageError."""
    executor = str(given.get("executor", "local"))
    if executor not in EXECUTORS:
        raise UsageError(f"--executor: expected one of {', '.join(EXECUTORS)}, got {executor!r}")
    wrong = [name for name in ("address", "workers") if name in given and executor != "ray"]
    if wrong:
        raise UsageError(f"--{wrong[0]}: expected --executor ray with it, got {executor}")
    if executor == "local":
        with closing(MeteredMaker(meter, bar)) as local:
            yield local
        return
    workers = given.get("workers")
    if workers is not None and int(workers) < 1:
        raise UsageError(f"--workers: expected at least 1, got {workers}; leave it out for all")
    try:
        from lipcast.jobs.local import LocalMaker
        from lipcast.jobs.ray import RayMaker
    except ImportError as error:
        raise UsageError(
            "--executor ray: expected Ray, which is not installed; pip install 'lipcast[ray]'"
        ) from error
    address = str(given["address"]) if "address" in given else None
    num_workers = None if workers is None else int(workers)
    with RayMaker(
        LocalMaker,
        address=address,
        num_workers=num_workers,
        memory_bytes=_largest_budget(store),
        num_gpus=_most_gpus(store),
    ) as maker:
        yield maker


def _largest_budget(store: Store) -> int | None:
    """The most host memory that a job may take by its --ram, in bytes; None where no job says so."""
    budgets = [job.request["memory"]["ram"] for job in _unfinished(store)]
    return max((parse_bytes(budget) for budget in budgets if budget), default=None)


def _most_gpus(store: Store) -> int:
    """The most GPUs that a job asks for."""
    return max(
        (GpuOptions(**job.request["gpus"]).num_gpus for job in _unfinished(store)), default=1
    )


def _unfinished(store: Store) -> list[Job]:
    """The jobs that a worker may come to make."""
    from lipcast.jobs.store import RUNNING, WAITING

    return store.jobs((WAITING, RUNNING))


def listing(given: Mapping[str, RawFlags]) -> None:
    """List the jobs: name, state, finished segments, output."""
    talk, store = Console.begin(given), _store(given)
    documents = _documents(store)
    if talk.as_json:
        print_json({"jobs": documents})
        return
    for job in documents:
        of = "?" if job["num_segments"] is None else job["num_segments"]
        done = f"{len(job['segments'])}/{of}"
        typer.echo(f"{job['job']}  {job['state']:<9}  {done:>7}  {job['output']}  {job['error']}")


def watch(given: Mapping[str, RawFlags]) -> None:
    """Show the jobs while they are worked at: state, segments, frames a second, time that is left.

    Ends when no job waits or runs: with 0 if none has failed, else with 1.
    """
    from lipcast.cli.watch import watch as draw

    draw(_store(given), given)


def show(given: Mapping[str, RawFlags]) -> None:
    """Everything about one job, as one JSON document."""
    Console.begin(given)
    store = _store(given)
    job = store.job(str(given["job"]))
    print_json(_document(job, store.segments(job.id)) | {"request": dict(job.request)})


def cancel(given: Mapping[str, RawFlags]) -> None:
    """End a job. Its worker stops after the segment in flight; finished segments stay."""
    Console.begin(given)
    _store(given).cancel(str(given["job"]))


def retry(given: Mapping[str, RawFlags]) -> None:
    """Let a failed or cancelled job go on from its finished segments at the next `job run`."""
    Console.begin(given)
    _store(given).retry(str(given["job"]))


def remove(given: Mapping[str, RawFlags]) -> None:
    """Forget a job and its segments; the finished video stays."""
    Console.begin(given)
    _store(given).remove(str(given["job"]))


def register(app: typer.Typer) -> None:
    """Add the verbs to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    group = typer.Typer(no_args_is_help=True, context_settings=context, rich_markup_mode="markdown")
    one = with_flags(JOB_FLAGS, positional=_NAME)
    for name, command in (
        ("submit", with_flags(SUBMIT_FLAGS)(submit)),
        ("run", with_flags(RUN_FLAGS)(run)),
        ("list", with_flags(JOB_FLAGS)(listing)),
        ("watch", with_flags(WATCH_FLAGS)(watch)),
        ("show", one(show)),
        ("cancel", one(cancel)),
        ("retry", one(retry)),
        ("rm", one(remove)),
    ):
        group.command(name, context_settings=context)(command)
    app.add_typer(group, name="job", help="Videos that go on after whatever ended them.")


def _store(given: Mapping[str, RawFlags]) -> Store:
    from lipcast.jobs.store import Store

    where = given.get("workspace")
    return Store(cache_dir() / "jobs" if where is None else Path(str(where)).expanduser())


def _rows(path: Path) -> list[dict[str, RawFlags]]:
    """The given flags of every line of a batch; empty fields are not given."""
    try:
        text = path.read_text("utf-8")
        rows: list[dict[str, Any]]
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"--batch: expected a CSV with a header, or JSON lines, got {path}: {error}"
        ) from error
    known = {flag.name for flag in FLAGS}
    for number, row in enumerate(rows, 1):
        wrong = [str(key) for key in row if key not in known]
        if wrong:
            raise InputError(
                f"{path}: job {number}: expected flags of generate, got {', '.join(wrong)}"
            )
    return [
        {key: value if value is True else str(value) for key, value in row.items()
         if value is not None and value is not False and value != ""} for row in rows
    ]  # fmt: skip


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
