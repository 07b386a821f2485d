"""The jobs of a workspace: one SQLite file, and beside it a folder for every job.

Input: requests as plain data. Output: `Job`s and their finished segments. Several processes may use one
workspace. A job is leased with a lock that the system releases when its holder dies: no clock decides who
may work, so none that goes back can give one job to two. Every write of a worker carries the number of its
lease, and one with an old number changes nothing.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lipcast.errors import CancelledError, InputError, OutputError, UsageError
from lipcast.media.lock import try_lock
from lipcast.media.target import numbered

WAITING, RUNNING, FINISHED, FAILED, CANCELLED = STATES = (
    "waiting", "running", "finished", "failed", "cancelled",
)  # fmt: skip
_BUSY_S = 30
"""How long a process waits for another's write."""
_SCHEMA_VERSION = 1
_TABLES = (
    """
CREATE TABLE IF NOT EXISTS jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state TEXT NOT NULL,
    request TEXT NOT NULL, lease INTEGER NOT NULL DEFAULT 0, num_segments INTEGER,
    error TEXT NOT NULL DEFAULT '', submitted_s REAL NOT NULL
)""",
    """
CREATE TABLE IF NOT EXISTS segments (
    job TEXT NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL, snapshot_sha256 TEXT NOT NULL,
    report TEXT NOT NULL, PRIMARY KEY (job, number)
)""",
)
_FROM_VERSION_0 = (
    "ALTER TABLE jobs RENAME COLUMN claim TO lease",
    "ALTER TABLE segments RENAME COLUMN past_sha256 TO snapshot_sha256",
)
_JOB = "SELECT id, state, request, num_segments, error, submitted_s, lease FROM jobs"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store knows it."""

    id: str
    state: str
    request: Mapping[str, Any]
    num_segments: int | None
    """None until a worker has looked at the sound."""
    error: str
    submitted_s: float
    """Seconds since 1970, for people."""
    lease: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished segment: hashes of its video and of the snapshot that the next one starts from."""

    number: int
    sha256: str
    snapshot_sha256: str
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lease:
    """The exclusive right to run a job, until `release` or the end of the process."""

    job: Job
    folder: Path
    lock: BinaryIO

    def release(self) -> None:
        """Give the right back."""
        self.lock.close()


class Store:
    """The jobs of one workspace. Raises OutputError where its files cannot be written."""

    def __init__(self, workspace: Path) -> None:
        """Open a workspace, making it if it does not exist."""
        self.workspace = workspace
        try:
            workspace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot keep jobs in {workspace}: {error.strerror}. Choose another folder "
                "(--workspace for jobs, LIPCAST_HOME for all), or make the video with --segment 0"
            ) from error
        with self._connected() as base:
            version: int = base.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise OutputError(
                f"{workspace}: a newer version of Lipcast has written these jobs; "
                "update Lipcast, or choose another --workspace"
            )
        if version < _SCHEMA_VERSION:
            with self._writing() as base:
                _migrate(base)

    def submit(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        names: Sequence[str] = (),
        automatic: Collection[int] = (),
    ) -> list[str]:
        """Add jobs, all or none; returns their names, which are random unless they are given.

        A job whose given name is known already stays as it is. `automatic`: places in `requests` of those
        whose output was named automatically; it gets a number where another job writes that file.
        """
        names = list(names) or [secrets.token_hex(4) for _ in requests]
        with self._writing() as base:
            if automatic:
                requests = _with_free_outputs(base, requests, automatic)
            for name, request in zip(names, requests, strict=True):
                base.execute(
                    "INSERT OR IGNORE INTO jobs (id, state, request, submitted_s) VALUES (?, ?, ?, ?)",
                    (name, WAITING, json.dumps(dict(request)), time.time()),
                )
        return names

    def jobs(self, states: Collection[str] = STATES) -> list[Job]:
        """Return the jobs in any of `states`, in order of submission."""
        query = f"{_JOB} WHERE state IN ({', '.join('?' * len(states))}) ORDER BY place"
        with self._connected() as base:
            return [_job(row) for row in base.execute(query, tuple(states))]

    def job(self, name: str) -> Job:
        """Return one job; raises InputError for an unknown name."""
        with self._connected() as base:
            row = base.execute(f"{_JOB} WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise InputError(
                f"no job is called {name!r} in {self.workspace}; see `lipcast job list`"
            )
        return _job(row)

    def segments(self, name: str) -> dict[int, Segment]:
        """Return the finished segments of a job, by number."""
        query = "SELECT number, sha256, snapshot_sha256, report FROM segments WHERE job = ?"
        with self._connected() as base:
            rows = base.execute(query, (name,)).fetchall()
        return {row[0]: _segment(row) for row in rows}

    def all_segments(self) -> dict[str, dict[int, Segment]]:
        """Return the finished segments of all jobs, by the job's name and by number, in one query."""
        query = (
            "SELECT job, number, sha256, snapshot_sha256, report FROM segments ORDER BY job, number"
        )
        found: dict[str, dict[int, Segment]] = defaultdict(dict)
        with self._connected() as base:
            for job, *row in base.execute(query):
                found[job][row[0]] = _segment(row)
        return found

    def folder(self, name: str) -> Path:
        """Return the folder of a job's files."""
        return self.workspace / name

    def lease(self, name: str | None = None) -> Lease | None:
        """Lease the first job that waits, or whose worker is gone; None where there is none."""
        for job in self.jobs((WAITING, RUNNING)):
            if name in (None, job.id):
                lease = self._try_lease(job.id)
                if lease is not None:
                    return lease
        return None

    def _try_lease(self, name: str) -> Lease | None:
        lock = self._lock(name)
        if lock is None:
            return None
        query = "UPDATE jobs SET state = ?, lease = lease + 1 WHERE id = ? AND state IN (?, ?)"
        try:
            with self._writing() as base:
                found = base.execute(query, (RUNNING, name, WAITING, RUNNING)).rowcount
            if found:
                return Lease(self.job(name), self.folder(name), lock)
        except BaseException:
            lock.close()
            raise
        lock.close()  # another worker has just ended it
        return None

    def _lock(self, name: str) -> BinaryIO | None:
        """Return the lock of a job, or None while another process has it."""
        folder = self.folder(name)
        try:
            folder.mkdir(exist_ok=True)
            return try_lock(folder / "lock")
        except OSError as error:
            raise OutputError(
                f"cannot lock a job in {folder}: {error.strerror}. "
                "Check the permissions of the workspace, and that its file system knows locks."
            ) from error

    def plan(self, lease: Lease, num_segments: int) -> None:
        """Record how many segments the leased job has."""
        self._update(lease, "num_segments = ?", num_segments)

    def add_segment(self, lease: Lease, segment: Segment) -> None:
        """Record a finished segment; raises CancelledError where the lease is no longer valid."""
        with self._writing() as base:
            _check(base, lease)
            base.execute(
                "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)",
                (lease.job.id, segment.number, segment.sha256, segment.snapshot_sha256,
                 json.dumps(dict(segment.report), default=str)),
            )  # fmt: skip

    def check(self, lease: Lease) -> None:
        """Raise CancelledError where the job was cancelled or belongs to somebody else."""
        with self._connected() as base:
            _check(base, lease)

    def finish(self, lease: Lease) -> None:
        """Mark the job as finished."""
        self._update(lease, "error = '', state = ?", FINISHED)

    def put_back(self, lease: Lease) -> None:
        """Let the job wait again, for the next worker."""
        self._update(lease, "state = ?", WAITING)

    def fail(self, lease: Lease, error: str) -> None:
        """Mark the job as failed; `retry` lets it continue."""
        self._update(lease, "state = ?, error = ?", FAILED, error)

    def _update(self, lease: Lease, what: str, *values: object) -> None:
        with self._writing() as base:
            _check(base, lease)
            base.execute(f"UPDATE jobs SET {what} WHERE id = ?", (*values, lease.job.id))

    def cancel(self, name: str) -> None:
        """End a job; its worker stops after the segment it is making."""
        self._change(name, CANCELLED, (WAITING, RUNNING))

    def retry(self, name: str) -> None:
        """Let a failed or cancelled job continue from its finished segments."""
        self._change(name, WAITING, (FAILED, CANCELLED))

    def _change(self, name: str, state: str, allowed: tuple[str, ...]) -> None:
        now = self.job(name).state
        query = "UPDATE jobs SET state = ?, error = '' WHERE id = ? AND state = ?"
        with self._writing() as base:
            changed = now in allowed and base.execute(query, (state, name, now)).rowcount
        if not changed:
            raise UsageError(
                f"job {name} is {now}; only a job that is {' or '.join(allowed)} can become {state}. "
                "See `lipcast job list`."
            )

    def remove(self, name: str) -> None:
        """Remove a job and its segments; raises UsageError while it is running."""
        self.job(name)
        lock = self._lock(name)
        if lock is None:
            raise UsageError(f"job {name} is running; cancel it first")
        with closing(lock), self._writing() as base:
            base.execute("DELETE FROM segments WHERE job = ?", (name,))
            base.execute("DELETE FROM jobs WHERE id = ?", (name,))
            shutil.rmtree(self.folder(name), ignore_errors=True)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        path = self.workspace / "jobs.sqlite"
        try:
            with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as base:
                base.execute("PRAGMA journal_mode = WAL")
                base.execute("PRAGMA synchronous = FULL")
                yield base
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot read and write {path}: {error}. Check the disk and its permissions, and that no "
                "other program holds the file."
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
                base.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error counts
                    base.execute("ROLLBACK")
                raise


def _migrate(base: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an earlier version up to date."""
    columns = {row[1] for row in base.execute("PRAGMA table_info(jobs)")}
    for statement in (*(_FROM_VERSION_0 if "claim" in columns else ()), *_TABLES):
        base.execute(statement)
    base.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _with_free_outputs(
    base: sqlite3.Connection, requests: Sequence[Mapping[str, Any]], automatic: Collection[int]
) -> list[Mapping[str, Any]]:
    """Return the requests, those at `automatic` with an output that no other job and no file has."""
    taken = {json.loads(row[0])["output"] for row in base.execute("SELECT request FROM jobs")}
    taken |= {each["output"] for place, each in enumerate(requests) if place not in automatic}
    found = list(requests)
    for place in sorted(automatic):
        free = (p for p in numbered(Path(found[place]["output"])) if str(p) not in taken)
        output = str(next(path for path in free if not path.exists()))
        found[place] = {**found[place], "output": output}
        taken.add(output)
    return found


def _job(row: tuple[Any, ...]) -> Job:
    name, state, request, num_segments, error, submitted_s, lease = row
    return Job(name, state, json.loads(request), num_segments, error, submitted_s, lease)


def _segment(row: Sequence[Any]) -> Segment:
    number, sha256, snapshot_sha256, report = row
    return Segment(number, sha256, snapshot_sha256, json.loads(report))


def _check(base: sqlite3.Connection, lease: Lease) -> None:
    row = base.execute("SELECT state, lease FROM jobs WHERE id = ?", (lease.job.id,)).fetchone()
    if row != (RUNNING, lease.job.lease):
        raise CancelledError(f"job {lease.job.id} was cancelled or taken over")
