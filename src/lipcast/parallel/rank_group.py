"""The processes that make videos together: started, watched and ended from here.

Input: a layout, what to load. Output: messages to ranks and from them. Whatever happens to one rank ends all
of them within seconds, and is told with that rank's name. Nothing is left behind: a rank whose maker is gone
ends by itself.
"""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
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

_log = logger("parallel.crew")
_GRACE_S = 1.0
"""The first error to arrive may come from a rank that has lost another: time for that one's own."""
_TERM_S = 2.0
"""Between asking a process to end and ending it."""


class Process(Protocol):
    """A rank's process."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


StartRank = Callable[[int], tuple[Connection, Process | None]]
"""Starts a rank, by number; its connection, and its process where it is one of this machine's."""


def start_process(rank: int) -> tuple[Connection, Process | None]:
    """A rank in a process of its own."""
    here, there = Pipe()
    with there:
        return here, spawn(rank, there, GLOO_SOCKET_IFNAME="lo")


def spawn(rank: int, link: Connection, **environment: str) -> Process:
    """Start a process that serves the other end of a connection.

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
        # Ctrl-C is for the process that makes the video, which then ends its ranks.
        start_new_session=True,
        env=child_environment(**environment),
    )


class RankHandle:
    """One rank as seen from here."""

    def __init__(self, role: Role, link: Connection, process: Process | None) -> None:
        self.role, self.link, self.process = role, link, process
        self.failure: RankFailed | None = None

    @property
    def name(self) -> str:
        where = f", process {self.process.pid}" if self.process else ""
        return f"rank {self.role.rank} ({self.role}{where})"

    @property
    def is_well(self) -> bool:
        """Whether it is there, as far as is known here."""
        is_gone = self.process is not None and self.process.poll() is not None
        return self.failure is None and not is_gone

    def explain(self) -> str:
        """What is known of its end."""
        if self.failure is not None:
            return f"{self.name}: {self.failure.kind}: {self.failure.sentence}"
        status = self._exit_status()
        if status is not None and status < 0:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        return f"{self.name} ended without a word, with exit status {status}"

    def _exit_status(self) -> int | None:
        """Of a process that is about to be gone: its socket closes a moment earlier."""
        deadline = time.monotonic() + _GRACE_S
        while self.process is not None and time.monotonic() < deadline:
            status = self.process.poll()
            if status is not None:
                return status
            time.sleep(0.01)
        return None


class RankGroup:
    """All ranks of one layout. Closed by `close`, by the end of the program, or by a rank's failure."""

    def __init__(
        self,
        joins: Sequence[InitRank],
        *,
        start: StartRank = start_process,
    ) -> None:
        """Starts every rank; `ready` waits for them."""
        self.members: list[RankHandle] = []
        self._told = 0
        self._error: LipcastError | None = None
        self._closing = weakref.finalize(self, _end, self.members)
        for role, join in zip(roles_of(joins[0].layout), joins, strict=True):
            member = RankHandle(role, *start(role.rank))
            self.members.append(member)
            self._send(member, join)

    def ready(self) -> None:
        """Wait until every rank has loaded its networks."""
        for _ in self.members:
            received = self.receive()
            assert received is not None and isinstance(received[1], RankReady)

    def send(self, message: Any, where: Callable[[Role], bool] = lambda _role: True) -> None:
        """To all ranks, or to those with a role. Raises RankError."""
        self._check()
        data = pickle.dumps(message, protocol=5)
        for member in self.members:
            if where(member.role):
                self._send_bytes(member, data)

    def receive(self, timeout_s: float | None = None) -> tuple[int, Any] | None:
        """The next message and the rank it came from; None after the time-out. Raises RankError."""
        self._check()
        links = {member.link: member for member in self.members}
        for link in wait(list(links), timeout_s):
            member = links[link]  # type: ignore[index]
            message = self._read(member)
            if message is None:
                self._fail(member)
            return member.role.rank, message
        return None

    def tell(self, keep: Callable[[Any], None]) -> list[RankStats]:
        """What every rank has done since its video began; other messages meanwhile are given to `keep`."""
        self._told += 1
        self.send(GetStats(self._told))
        found: dict[int, RankStats] = {}
        while len(found) < len(self.members):
            received = self.receive()
            assert received is not None
            rank, message = received
            if isinstance(message, RankStats) and message.number == self._told:
                found[rank] = message
            else:
                keep(message)
        return [found[member.role.rank] for member in self.members]

    def close(self) -> None:
        """End all ranks. May be called again."""
        self._closing()

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error))
        if not self._closing.alive:
            raise RankError("the ranks of this model were ended; load it again")

    def _send(self, member: RankHandle, message: Any) -> None:
        self._send_bytes(member, pickle.dumps(message, protocol=5))

    def _send_bytes(self, member: RankHandle, data: bytes) -> None:
        try:
            member.link.send_bytes(data)
        except OSError:
            self._fail(member)

    def _read(self, member: RankHandle) -> Any | None:
        """The next message of a rank; None where it has failed or is gone."""
        try:
            message = pickle.loads(member.link.recv_bytes())
        except (EOFError, OSError):
            return None
        except KeyboardInterrupt:
            # Half a message may have been read: what follows it means nothing.
            self._error = CancelledError("stopped; load the model again")
            raise
        if isinstance(message, RankFailed):
            member.failure = message
            return None
        return message

    def _fail(self, first: RankHandle) -> None:
        """End all ranks, and raise the error of the one that failed first."""
        culprit = _culprit(self.members, first)
        sentence = culprit.explain()
        if culprit.failure is not None:
            _log.debug("%s:\n%s", culprit.name, culprit.failure.trace)
        self.close()
        kind = _kind_of(culprit.failure)
        self._error = kind(f"{sentence}; all ranks were ended; finished frames are kept")
        raise self._error


def _kind_of(failure: RankFailed | None) -> type[LipcastError]:
    """The error of this process that stands for a rank's."""
    if failure is None:
        return RankError
    if failure.kind == "OutOfMemoryError":
        return MemoryBudgetError
    found = getattr(errors, failure.kind, RankError)
    return found if issubclass(found, LipcastError) else RankError


def _culprit(members: Sequence[RankHandle], first: RankHandle) -> RankHandle:
    """Whose failure was the cause: not one that has only lost another."""
    deadline = time.monotonic() + _GRACE_S
    gone = [first]
    while not any(_is_cause(member) for member in gone) and time.monotonic() < deadline:
        rest = {member.link: member for member in members if member not in gone}
        for link in wait(list(rest), max(0.0, deadline - time.monotonic())):
            member = rest[link]  # type: ignore[index]
            try:
                message = pickle.loads(member.link.recv_bytes())
            except (EOFError, OSError):
                gone.append(member)
                continue
            if isinstance(message, RankFailed):
                member.failure = message
                gone.append(member)
    return next((member for member in gone if _is_cause(member)), first)


def _is_cause(member: RankHandle) -> bool:
    return member.failure is None or not member.failure.lost_peer


def _end(members: Sequence[RankHandle]) -> None:
    """Ask every rank to stop, then insist; returns when all are gone.

    After a failure nobody is asked: who waits for a lost rank does not hear.
    """
    is_whole = all(member.is_well for member in members)
    for member in members:
        with suppress(OSError):
            member.link.send_bytes(pickle.dumps(Stop()))
        member.link.close()
    processes = [member.process for member in members if member.process is not None]
    if is_whole and _are_gone(processes):
        return
    for process in processes:
        if process.poll() is None:
            process.terminate()
    if _are_gone(processes):
        return
    for process in processes:
        if process.poll() is None:
            process.kill()
    _are_gone(processes)


def _are_gone(processes: Sequence[Process]) -> bool:
    """Whether all have ended, within a time that they are given."""
    deadline = time.monotonic() + _TERM_S
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class FileRendezvous:
    """A file through which local ranks find each other; gone with this object."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lipcast-ranks-"))
        self.path = str(self._folder / "store")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
