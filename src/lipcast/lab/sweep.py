"""A sweep: every cell of a matrix in fresh processes, every outcome a line of a file.

Input: cells, and how a cell becomes a command. Output: records, appended to a JSON-lines file as they
come. Whatever a cell does (refusal, no memory, a crash, a kill, no end) is its outcome; the sweep goes
on with the next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from lipcast.errors import MemoryBudgetError
from lipcast.lab.matrix import Cell
from lipcast.lab.results import append_result, read_results
from lipcast.lab.sampler import Sampler, Samples

OK, REFUSED, NO_MEMORY = "ok", "refused", "out of memory"
FAILED, KILLED, TIMED_OUT = "failed", "killed", "timed out"
FINAL = frozenset({OK, REFUSED, NO_MEMORY})
"""Outcomes that another try would repeat: `resume` does not run these again."""
_USAGE_EXIT = 2
_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Sweep:
    """Settings of the processes that measure cells."""

    command: Callable[[Cell], list[str]]
    """The process that measures a cell; the last line of its standard output is its document."""
    refusal: Callable[[Cell], str]
    """Why a cell cannot be asked for at all; empty where it can."""
    shown_command: Callable[[Cell], str]
    """Command that measures the cell again."""
    repeats: int = 2
    timeout_s: float | None = None


def run_sweep(
    sweep: Sweep, cells: Iterable[Cell], results: Path, *, resume: bool = False
) -> Iterator[dict[str, Any]]:
    """Run and record every cell; yields each record after it was written.

    With `resume`, what the file already has with a final outcome is left out; a torn last line, of a
    sweep that was killed, is run again. Raises OutputError where the file cannot be written.
    """
    done = _done(results) if resume else set()
    for cell in cells:
        for repeat in range(sweep.repeats):
            if (key_of(cell), repeat) in done:
                continue
            record = _record(sweep, cell, repeat)
            append_result(results, record)
            yield record
            if record["status"] == REFUSED:
                break


def key_of(cell: Cell) -> str:
    """Return one name for a cell, whatever the order of its flags."""
    return json.dumps(dict(cell), sort_keys=True)


def _done(results: Path) -> set[tuple[str, int]]:
    if not results.exists():
        return set()
    records = read_results([results])
    final = [r for r in records if r.get("kind") == "bench" and r["status"] in FINAL]
    done = {(key_of(record["cell"]), record["repeat"]) for record in final}
    refused = [record for record in final if record["status"] == REFUSED]
    return done | {(key_of(r["cell"]), repeat) for r in refused for repeat in range(1000)}


def _record(sweep: Sweep, cell: Cell, repeat: int) -> dict[str, Any]:
    began = datetime.now(UTC)
    record: dict[str, Any] = {
        "kind": "bench",
        "cell": dict(cell),
        "repeat": repeat,
        "command": sweep.shown_command(cell),
        "started": began.isoformat(timespec="seconds"),
        "load_before": round(psutil.getloadavg()[0], 2),
    }
    if reason := sweep.refusal(cell):
        return record | {"status": REFUSED, "reason": reason}
    clock = time.monotonic()
    outcome = _run(sweep.command(cell), sweep.timeout_s)
    return record | {"wall_s": round(time.monotonic() - clock, 3)} | outcome


def _run(command: list[str], timeout_s: float | None) -> dict[str, Any]:
    """Run one process to its end, sampled."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        family = _family(command, out, err)
        with family as process, Sampler(process.pid) as sampler:
            timed_out = _wait(process, timeout_s)
        said, complained = _text(out), _text(err)
    outcome = _outcome(process.returncode, said, complained)
    if timed_out:
        outcome = {"status": TIMED_OUT, "reason": f"no end after {timeout_s:g} s"}
    return outcome | {"exit_code": process.returncode, "samples": _samples(sampler.samples)}


@contextmanager
def _family(
    command: list[str], out: IO[bytes], err: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, which is ended with all its children."""
    process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its children."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None) -> bool:
    """Wait for the end; whether it had to be ended."""
    try:
        process.wait(timeout_s)
        return False
    except subprocess.TimeoutExpired:
        _end(process)
        return True


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _samples(samples: Samples) -> dict[str, Any]:
    return samples.document()


def _outcome(exit_code: int, said: str, complained: str) -> dict[str, Any]:
    """Interpret an exit code and a document."""
    document = _document(said)
    error = document.get("error", {}) if document else {}
    reason = str(error.get("message") or _last_line(complained) or "it said nothing")
    if exit_code == 0:
        if document is None:
            return {"status": FAILED, "reason": "it ended well, but without a document"}
        return {"status": OK, "reason": "", "document": document}
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        by_system = "; the system does so when memory runs out" if name == "SIGKILL" else ""
        return {"status": KILLED, "reason": f"ended by {name}{by_system}"}
    if exit_code == MemoryBudgetError.exit_code:
        found = document or {}
        where: dict[str, Any] = {k: found[k] for k in ("block", "step", "part") if k in found}
        return {"status": NO_MEMORY, "reason": reason} | where
    if exit_code == _USAGE_EXIT:
        return {"status": REFUSED, "reason": reason}
    return {"status": FAILED, "reason": reason, "said": complained[-_TAIL_BYTES:]}


def _document(said: str) -> dict[str, Any] | None:
    """Return the last line, or the whole, of an output, where that is a JSON object."""
    lines = said.strip().splitlines()
    for text in (lines[-1:] and lines[-1], said):
        try:
            found = json.loads(text or "null")
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
