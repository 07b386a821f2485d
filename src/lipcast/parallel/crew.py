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

from lipcast.errors import LipcastError, MemoryBudgetError, RankError
from lipcast.parallel.messages import Failed, Join, Ready, Stop, Tell, Told
from lipcast.parallel.roles import Role, roles_of
from lipcast.runtime import child_environment, logger

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


StartRank = Callable[[Connection], Process | None]
"""Starts a process that serves the other end of a connection; None where somebody else watches it."""


def start_process(link: Connection) -> Process:
    """A rank in a process of its own."""
    descriptor = link.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "lipcast.parallel.rank", str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for the process that makes the video, which then ends its ranks.
        start_new_session=True,
        env=child_environment(GLOO_SOCKET_IFNAME="lo"),
    )


class Member:
    """One rank as seen from here."""

    def __init__(self, role: Role, link: Connection, process: Process | None) -> None:
        self.role, self.link, self.process = role, link, process
        self.failure: Failed | None = None

    @property
    def name(self) -> str:
        where = f", process {self.process.pid}" if self.process else ""
        return f"rank {self.role.rank} ({self.role}{where})"

    def explain(self) -> str:
        """What is known of its end."""
        if self.failure is not None:
            return f"{self.name}: {self.failure.kind}: {self.failure.sentence}"
        status = self.process.poll() if self.process else None
        if status is not None and status < 0:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        return f"{self.name} ended without a word, with exit status {status}"


class Crew:
    """All ranks of one layout. Closed by `close`, by the end of the program, or by a rank's failure."""

    def __init__(
        self,
        joins: Sequence[Join],
        *,
        start: StartRank = start_process,
    ) -> None:
        """Starts every rank; `ready` waits for them."""
        self.members: list[Member] = []
        self._told = 0
        self._error: LipcastError | None = None
        self._closing = weakref.finalize(self, _end, self.members)
        for role, join in zip(roles_of(joins[0].layout), joins, strict=True):
            here, there = Pipe()
            member = Member(role, here, start(there))
            there.close()
            self.members.append(member)
            self._send(member, join)

    def ready(self) -> list[Ready]:
        """Wait until every rank has loaded its networks."""
        found: dict[int, Ready] = {}
        while len(found) < len(self.members):
            received = self.receive()
            assert received is not None
            rank, message = received
            assert isinstance(message, Ready)
            found[rank] = message
        return [found[member.role.rank] for member in self.members]

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

    def tell(self, keep: Callable[[Any], None]) -> list[Told]:
        """What every rank has done since its video began; other messages meanwhile are given to `keep`."""
        self._told += 1
        self.send(Tell(self._told))
        found: dict[int, Told] = {}
        while len(found) < len(self.members):
            received = self.receive()
            assert received is not None
            rank, message = received
            if isinstance(message, Told) and message.number == self._told:
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

    def _send(self, member: Member, message: Any) -> None:
        self._send_bytes(member, pickle.dumps(message, protocol=5))

    def _send_bytes(self, member: Member, data: bytes) -> None:
        try:
            member.link.send_bytes(data)
        except OSError:
            self._fail(member)

    def _read(self, member: Member) -> Any | None:
        """The next message of a rank; None where it has failed or is gone."""
        try:
            message = pickle.loads(member.link.recv_bytes())
        except (EOFError, OSError):
            return None
        if isinstance(message, Failed):
            member.failure = message
            return None
        return message

    def _fail(self, first: Member) -> None:
        """End all ranks, and raise the error of the one that failed first."""
        culprit = _culprit(self.members, first)
        sentence = culprit.explain()
        if culprit.failure is not None:
            _log.debug("%s:\n%s", culprit.name, culprit.failure.trace)
        self.close()
        kind = (
            MemoryBudgetError
            if "OutOfMemory" in sentence or "MemoryBudget" in sentence
            else RankError
        )
        self._error = kind(f"{sentence}; all ranks were ended; finished frames are kept")
        raise self._error


def _culprit(members: Sequence[Member], first: Member) -> Member:
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
            if isinstance(message, Failed):
                member.failure = message
                gone.append(member)
    return next((member for member in gone if _is_cause(member)), first)


def _is_cause(member: Member) -> bool:
    return member.failure is None or not member.failure.lost_peer


def _end(members: Sequence[Member]) -> None:
    """Ask every rank to stop, then insist; returns when all are gone."""
    for member in members:
        with suppress(OSError):
            member.link.send_bytes(pickle.dumps(Stop()))
        member.link.close()
    processes = [member.process for member in members if member.process is not None]
    for end in (lambda _process: None, lambda process: process.terminate(), lambda p: p.kill()):
        for process in processes:
            if process.poll() is None:
                end(process)
        deadline = time.monotonic() + _TERM_S
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)


class MeetingPlace:
    """A file through which local ranks find each other; gone with this object."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lipcast-ranks-"))
        self.path = str(self._folder / "store")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
