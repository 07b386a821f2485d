"""Ranks that torchrun has started: they find the process of rank 0, which makes the video.

Rank 0 starts one more process to be a rank like the others, and speaks with all of them; the others serve
until it lets them go. Where they meet is arranged by torchrun, with its store of names.
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
    """Rank 0's end: the connections of the others as they come."""

    def __init__(self, launched: Launched) -> None:
        key = secrets.token_bytes(32)
        self._listener = Listener((launched.address, 0), authkey=key)
        self._links: dict[int, Connection] = {}
        self._store = _store()
        """Kept: without an agent of torchrun's it is served from here."""
        self._store.set(_NAME, pickle.dumps((self._listener.address, key)).hex())

    def start(self, rank: int) -> tuple[Connection, Process | None]:
        """The connection of a rank; its own is a new process."""
        if rank == 0:
            here, there = Pipe()
            with there:
                return here, spawn(rank, there, TORCHELASTIC_USE_AGENT_STORE="True")
        while rank not in self._links:
            try:
                link = self._listener.accept()
            except (AuthenticationError, EOFError, OSError) as error:
                raise RankError(f"expected rank {rank} to join, got: {error}") from error
            self._links[link.recv()] = link
        return self._links[rank], None


def serve_launched(launched: Launched) -> None:
    """Be a rank for rank 0, until it says stop."""
    address, key = pickle.loads(bytes.fromhex(_store().get(_NAME).decode()))
    link = Client(address, authkey=key)
    link.send(launched.rank)
    serve(link, local_rank=launched.local_rank)


def _store() -> Store:
    """Where ranks leave words for each other, before they are a group."""
    store: Store = next(iter(rendezvous("env://")))[0]
    return store
