"""Ranks that torchrun has started, and how they connect to the main process.

The process of rank 0 is the main process: it starts one more process that serves as rank 0, and connects to
all ranks. The other processes serve until it tells them to stop. They find its address in torchrun's store.
"""

from __future__ import annotations

import pickle
import secrets
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection, Listener

from torch.distributed import Store, rendezvous  # type: ignore[attr-defined]

from lipcast.env import Launched
from lipcast.errors import RankError
from lipcast.parallel.rank import serve
from lipcast.parallel.rank_group import Process, spawn

_NAME = "lipcast/rank 0"


class TorchrunRendezvous:
    """Connects the main process to the ranks that a launcher has started."""

    def __init__(self, launched: Launched) -> None:
        key = secrets.token_bytes(32)
        self._listener = Listener((launched.address, 0), authkey=key)
        self._links: dict[int, Connection] = {}
        self._store = _store()
        """Kept alive: without a torchrun agent this process serves the store."""
        self._store.set(_NAME, pickle.dumps((self._listener.address, key)).hex())

    def start(self, rank: int) -> tuple[Connection, Process | None]:
        """Return the connection of a rank; rank 0 is a new process."""
        if rank == 0:
            here, there = Pipe()
            with there:
                return here, spawn(rank, there, TORCHELASTIC_USE_AGENT_STORE="True")
        while rank not in self._links:
            try:
                link = self._listener.accept()
            except (AuthenticationError, EOFError, OSError) as error:
                raise RankError(f"rank {rank} could not connect to rank 0: {error}") from error
            self._links[link.recv()] = link
        return self._links[rank], None


def serve_launched(launched: Launched) -> None:
    """Serve as a rank until the main process tells it to stop."""
    address, key = pickle.loads(bytes.fromhex(_store().get(_NAME).decode()))
    link = Client(address, authkey=key)
    link.send(launched.rank)
    serve(link, local_rank=launched.local_rank)


def _store() -> Store:
    """Return the store of the launcher, which all processes can read before they are a group."""
    store: Store = next(iter(rendezvous("env://")))[0]
    return store
