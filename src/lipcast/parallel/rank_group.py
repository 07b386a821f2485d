"""The processes that make a video together, as the main process starts, watches and ends them.

Input: the first message of every rank. Output: messages to ranks and from them. When one rank fails, all are
ended within seconds, and the error names it. No process is left behind: a rank whose main process is gone
ends by itself.
"""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from lipcast import errors
from lipcast.env import child_environment, logger
from lipcast.errors import (
    CancelledError,
    LipcastError,
    MemoryBudgetError,
    NotBuiltError,
    RankError,
)
from lipcast.parallel.messages import GetStats, InitRank, RankFailed, RankReady, RankStats, Stop
from lipcast.parallel.roles import Role, roles_of

_log = logger("parallel.rank_group")
_GRACE_S = 1.0
"""Time to wait for the error of the rank at fault, where one that has lost it reports first."""
_TERM_S = 2.0
"""Time that processes are given to end before they are sent the next signal."""


class Process(Protocol):
    """The process of a rank."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


StartRank = Callable[[int], tuple[Connection, Process | None]]
"""Starts a rank by its number; returns its connection, and its process if that runs on this machine."""


def start_process(rank: int) -> tuple[Connection, Process | None]:
    """Start a rank in a process of its own."""
    here, there = Pipe()
    with there:
        return here, spawn(rank, there, GLOO_SOCKET_IFNAME="lo")


def spawn(rank: int, link: Connection, **environment: str) -> Process:
    """Start a process that serves as a rank on the other end of a connection.

    Raises NotBuiltError on Windows, where a process cannot inherit an open socket by its number.
    """
    if sys.platform == "win32":
        raise NotBuiltError(
            "several GPUs need Linux or macOS; use one GPU (--gpus 1), or run Lipcast in WSL 2"
        )
    _log.debug("starting rank %d", rank)
    descriptor = link.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "lipcast.parallel.rank", str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        # Ctrl-C goes to the main process only, which then ends its ranks.
        start_new_session=True,
        env=child_environment(**environment),
    )


class RankHandle:
    """One rank, as the main process knows it."""

    def __init__(self, role: Role, link: Connection, process: Process | None) -> None:
        self.role, self.link, self.process = role, link, process
        self.failure: RankFailed | None = None

    @property
    def name(self) -> str:
        """Its name in messages: number, role, process."""
        where = f", process {self.process.pid}" if self.process else ""
        return f"rank {self.role.rank} ({self.role}{where})"

    @property
    def is_alive(self) -> bool:
        """Whether neither an error nor the end of its process is known."""
        is_gone = self.process is not None and self.process.poll() is not None
        return self.failure is None and not is_gone

    def explain(self) -> str:
        """Say why it ended."""
        if self.failure is not None:
            return f"{self.name}: {self.failure.kind}: {self.failure.reason}"
        status = self._exit_status()
        if status is not None and status < 0:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        return f"{self.name} ended without an error message, with exit status {status}"

    def _exit_status(self) -> int | None:
        """Return the exit status; wait for it a little, because the socket closes before the process ends."""
        deadline = time.monotonic() + _GRACE_S
        while self.process is not None and time.monotonic() < deadline:
            status = self.process.poll()
            if status is not None:
                return status
            time.sleep(0.01)
        return None


Where = Callable[[Role], bool]
"""Says by its role whether a rank gets a message."""


def everywhere(_role: Role) -> bool:
    """Send to all ranks."""
    return True


class RankGroup:
    """All ranks of a layout. They end with `close`, with this object, or when one of them fails."""

    def __init__(
        self,
        inits: Sequence[InitRank],
        *,
        start: StartRank = start_process,
    ) -> None:
        """Start every rank; `wait_ready` waits for them."""
        self.ranks: list[RankHandle] = []
        self._num_stats = 0
        self._sending = threading.Lock()
        self._posted: deque[tuple[Any, Where]] = deque()
        """Messages that wait for the one being sent: a finalizer may post in the middle of it."""
        self._error: LipcastError | None = None
        self._closing = weakref.finalize(self, _end, self.ranks)
        for role, init in zip(roles_of(inits[0].layout), inits, strict=True):
            rank = RankHandle(role, *start(role.rank))
            self.ranks.append(rank)
            self._send_bytes(rank, pickle.dumps(init, protocol=5))

    def wait_ready(self) -> None:
        """Wait until every rank has loaded its networks. Raises the error of one that cannot."""
        for _ in self.ranks:
            received = self.receive()
            assert received is not None and isinstance(received[1], RankReady)

    def send(self, message: Any, where: Where = everywhere) -> None:
        """Send a message to the ranks whose role `where` accepts. Raises RankError."""
        self._check()
        data = pickle.dumps(message, protocol=5)
        with self._sending:
            for rank in self.ranks:
                if where(rank.role):
                    self._send_bytes(rank, data)
        self._send_posted()

    def post(self, message: Any, where: Where = everywhere) -> None:
        """Send a message as soon as no other is being sent; raise nothing. A finalizer may call this."""
        self._posted.append((message, where))
        self._send_posted()

    def receive(self, timeout_s: float | None = None) -> tuple[int, Any] | None:
        """Return the next message and the number of its rank; None after the time-out. Raises RankError."""
        self._check()
        links = {rank.link: rank for rank in self.ranks}
        for link in wait(list(links), timeout_s):
            rank = links[link]  # type: ignore[index]
            message = self._read(rank)
            if message is None:
                self._fail(rank)
            return rank.role.rank, message
        return None

    def get_stats(self, keep: Callable[[Any], None]) -> list[RankStats]:
        """Return what each rank has done since its video began; `keep` gets the other messages meanwhile."""
        self._num_stats += 1
        self.send(GetStats(self._num_stats))
        found: dict[int, RankStats] = {}
        while len(found) < len(self.ranks):
            received = self.receive()
            assert received is not None
            number, message = received
            if isinstance(message, RankStats) and message.number == self._num_stats:
                found[number] = message
            else:
                keep(message)
        return [found[rank.role.rank] for rank in self.ranks]

    def close(self) -> None:
        """End all ranks. May be called again."""
        self._closing()

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error))
        if not self._closing.alive:
            raise RankError("the ranks of this model have ended; load it again")

    def _send_posted(self) -> None:
        # Whoever sends looks here afterwards, so no message is left behind where the lock is taken.
        while self._posted and self._sending.acquire(blocking=False):
            try:
                self._send_next_posted()
            finally:
                self._sending.release()

    def _send_next_posted(self) -> None:
        if not self._posted:
            return
        message, where = self._posted.popleft()
        data = pickle.dumps(message, protocol=5)
        targets = self.ranks if self._closing.alive else []
        for rank in targets:
            if where(rank.role):
                # The next call that waits for a rank that is gone raises the error.
                with suppress(OSError):
                    rank.link.send_bytes(data)

    def _send_bytes(self, rank: RankHandle, data: bytes) -> None:
        try:
            rank.link.send_bytes(data)
        except OSError:
            self._fail(rank)

    def _read(self, rank: RankHandle) -> Any | None:
        """Return the next message of a rank; None where it has failed or is gone."""
        try:
            message = pickle.loads(rank.link.recv_bytes())
        except (EOFError, OSError):
            return None
        except KeyboardInterrupt:
            # Half a message may have been read, so the rest of the stream cannot be understood.
            self._error = CancelledError("stopped; load the model again")
            raise
        if isinstance(message, RankFailed):
            rank.failure = message
            return None
        return message

    def _fail(self, first: RankHandle) -> None:
        """End all ranks, and raise the error of the one at fault."""
        at_fault = _find_cause(self.ranks, first)
        explanation = at_fault.explain()
        if at_fault.failure is not None:
            _log.debug("%s:\n%s", at_fault.name, at_fault.failure.trace)
        self.close()
        kind = _error_type(at_fault.failure)
        self._error = kind(
            f"{explanation}; all ranks were ended, finished frames are kept; load the model again"
        )
        raise self._error


def _error_type(failure: RankFailed | None) -> type[LipcastError]:
    """Return the class of the error that stands for a rank's failure in this process."""
    if failure is None:
        return RankError
    if failure.cause == "out of memory":
        return MemoryBudgetError
    found = getattr(errors, failure.kind, RankError)
    return found if issubclass(found, LipcastError) else RankError


def _find_cause(ranks: Sequence[RankHandle], first: RankHandle) -> RankHandle:
    """Return the rank at fault: not one that has only lost another."""
    deadline = time.monotonic() + _GRACE_S
    gone = [first]
    if first.failure is None:
        _read_failure(first)
    while not any(_is_cause(rank) for rank in gone) and time.monotonic() < deadline:
        rest = {rank.link: rank for rank in ranks if rank not in gone}
        for link in wait(list(rest), max(0.0, deadline - time.monotonic())):
            rank = rest[link]  # type: ignore[index]
            if _read_failure(rank):
                gone.append(rank)
    return next((rank for rank in gone if _is_cause(rank)), first)


def _read_failure(rank: RankHandle) -> bool:
    """Read what a rank has sent up to its report of a failure; return whether it has ended."""
    try:
        while rank.link.poll():
            message = pickle.loads(rank.link.recv_bytes())
            if isinstance(message, RankFailed):
                rank.failure = message
                return True
    except (EOFError, OSError):
        return True
    return False


def _is_cause(rank: RankHandle) -> bool:
    return rank.failure is None or rank.failure.cause != "lost peer"


def _end(ranks: Sequence[RankHandle]) -> None:
    """Ask every rank to stop, then send SIGTERM, then SIGKILL; return when all have ended.

    After a failure they are sent SIGTERM at once: a rank that waits for a lost one reads no messages.
    """
    is_whole = all(rank.is_alive for rank in ranks)
    for rank in ranks:
        with suppress(OSError):
            rank.link.send_bytes(pickle.dumps(Stop()))
        rank.link.close()
    processes = [rank.process for rank in ranks if rank.process is not None]
    if is_whole and _wait_for_exit(processes):
        return
    for process in processes:
        if process.poll() is None:
            process.terminate()
    if _wait_for_exit(processes):
        return
    for process in processes:
        if process.poll() is None:
            process.kill()
    _wait_for_exit(processes)


def _wait_for_exit(processes: Sequence[Process]) -> bool:
    """Wait up to `_TERM_S` for all processes to exit; return whether they did."""
    deadline = time.monotonic() + _TERM_S
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class FileRendezvous:
    """A file by which the ranks of one machine find each other; deleted with this object."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lipcast-ranks-"))
        self.path = str(self._folder / "store")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
