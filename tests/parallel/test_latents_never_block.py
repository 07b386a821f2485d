"""No rank blocks another where the first send or receive of a pair waits for the other side, as on NCCL.

Real `Rank` objects run in threads over a model of the network, with stages that only exchange. The model can
deadlock: it does so when latents travel as device tensors, which is how they travelled once.
"""

from __future__ import annotations

import itertools
import pickle
import queue
import threading
from collections import defaultdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lipcast.config.schedule import Unit
from lipcast.parallel import p2p
from lipcast.parallel import rank as rank_module
from lipcast.parallel.messages import EncodePortrait, RunTick, StartSession, Stop
from lipcast.parallel.p2p import LatentLink
from lipcast.parallel.rank import Inbox, Rank
from lipcast.parallel.roles import Role, roles_of
from lipcast.planning.layouts import Layout

_DEADLOCK_S = 120.0
_NUM_BLOCKS, _NUM_STEPS = 4, 4


class LazyPairs:
    """Point-to-point transfers between threads.

    Tensors of a device: the first call of a pair, on either side, holds its thread until the other side calls
    too, and transfers wait in one queue per pair. Host memory: every call returns at once.
    """

    def __init__(self, num_collective: int) -> None:
        self.this = threading.local()
        self._collective = threading.Barrier(num_collective)
        self._pairs: dict[tuple[int, int], threading.Barrier] = defaultdict(
            lambda: threading.Barrier(2)
        )
        self._connected: set[tuple[int, int, int]] = set()
        self._queues: dict[tuple[int, int], queue.Queue[torch.Tensor]] = defaultdict(queue.Queue)
        self._lock = threading.Lock()

    def isend(self, tensor: torch.Tensor, target: int) -> dist.Work:
        self._connect(tensor, target)
        self._queue(self.this.rank, target).put(tensor)
        return SimpleNamespace(wait=lambda: True)  # type: ignore[return-value]

    def irecv(self, tensor: torch.Tensor, source: int) -> dist.Work:
        self._connect(tensor, source)
        incoming = self._queue(source, self.this.rank)
        return SimpleNamespace(wait=lambda: incoming.get(timeout=_DEADLOCK_S))  # type: ignore[return-value]

    def collective(self) -> None:
        self._collective.wait(_DEADLOCK_S)

    def _queue(self, source: int, target: int) -> queue.Queue[torch.Tensor]:
        with self._lock:
            return self._queues[source, target]

    def _connect(self, tensor: torch.Tensor, peer: int) -> None:
        rank = self.this.rank
        pair = min(rank, peer), max(rank, peer)
        if tensor.device.type == "cpu" or (*pair, rank) in self._connected:
            return
        with self._lock:
            barrier = self._pairs[pair]
        barrier.wait(_DEADLOCK_S)
        self._connected.add((*pair, rank))


class ExchangingStage:
    """A stage that computes nothing; with sharded weights it joins a collective in every tick."""

    network: LazyPairs

    def __init__(self, networks: Any, _message: Any, latents: LatentLink, _watch: Any) -> None:
        self._role, self._latents = networks.role, latents
        self._steps = networks.role.steps(_NUM_STEPS)

    def run(self, tick: tuple[Unit, ...]) -> list[Any]:
        for unit in tick:
            if unit.step == self._steps.start:
                self._latents.take(unit.block)
        if self._role.layout.sharded:
            self.network.collective()
        for unit in tick:
            if unit.step == self._steps[-1]:
                self._latents.send(unit.block, torch.zeros(2))
        return []

    def close(self) -> None:
        """Nothing is held."""


class ExchangingDecoder:
    """A decoder that drops what it takes."""

    is_decoding = False
    encoded = None

    def __init__(self, _networks: Any, _message: Any, latents: LatentLink, _watch: Any) -> None:
        self._latents = latents

    def run(self, tick: tuple[Unit, ...]) -> None:
        for unit in tick:
            if unit.step == _NUM_STEPS - 1:
                self._latents.take(unit.block)

    def collect(self, *, wait: bool) -> tuple[()]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


def ticks(layout: Layout) -> list[tuple[Unit, ...]]:
    """The pipeline in step: in every tick each stage has a step of its own block."""
    length = _NUM_BLOCKS * _NUM_STEPS
    per_stage = -(-_NUM_STEPS // layout.stages)
    found = []
    for time in range(length + _NUM_STEPS):
        tick = []
        for block in range(_NUM_BLOCKS):
            step = time - block * per_stage
            if 0 <= step < _NUM_STEPS:
                tick.append(Unit(block, step))
        if tick:
            found.append(tuple(tick))
    return found


def spec() -> Any:
    geometry = SimpleNamespace(
        latent_height=1, latent_width=1, latent_channels=2, latents_per_block=1
    )
    return SimpleNamespace(geometry=geometry, order=SimpleNamespace(num_steps=_NUM_STEPS))


def serve(
    role: Role,
    network: LazyPairs,
    link: Connection,
    num_messages: int,
    errors: list[BaseException],
) -> None:
    """Run one rank once all its messages have arrived, so that it looks as far ahead as it can."""
    network.this.rank = role.rank
    networks = SimpleNamespace(role=role, device=torch.device("cpu"), memory_manager=None)
    inbox = Inbox(link)
    with inbox._changed:
        assert inbox._changed.wait_for(lambda: len(inbox._messages) == num_messages, _DEADLOCK_S)
    try:
        Rank(networks, inbox, link).run()  # type: ignore[arg-type]
    except (threading.BrokenBarrierError, queue.Empty) as error:
        errors.append(error)


def messages(role: Role, layout: Layout) -> list[Any]:
    """What the main process sends this rank."""
    found: list[Any] = []
    if role.decodes and layout.vae_rank:
        found.append(EncodePortrait(1, spec(), None, None))  # type: ignore[arg-type]
    if role.stage is not None:
        found.append(StartSession(1, spec(), None, None, None, {}, None))  # type: ignore[arg-type]
    return [*found, *map(RunTick, ticks(layout)), Stop()]


def deadlocks(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run all ranks of a layout; whether any of them waited for another for ever."""
    roles = roles_of(layout)
    network = LazyPairs(layout.stages * layout.ulysses)
    monkeypatch.setattr(dist, "isend", network.isend)
    monkeypatch.setattr(dist, "irecv", network.irecv)
    monkeypatch.setattr(rank_module, "StageVideo", ExchangingStage)
    monkeypatch.setattr(rank_module, "DecoderVideo", ExchangingDecoder)
    monkeypatch.setattr(ExchangingStage, "network", network, raising=False)
    errors: list[BaseException] = []
    threads, ends = [], []
    for role in roles:
        here, there = Pipe()
        ends.append((here, there))
        to_rank = messages(role, layout)
        for message in to_rank:
            here.send_bytes(pickle.dumps(message))
        args = (role, network, there, len(to_rank), errors)
        threads.append(threading.Thread(target=serve, args=args))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(errors)


class DeviceReceiver(p2p.LatentReceiver):
    """Receives into memory of the device, as over NCCL."""

    def expect(self, block: int) -> None:
        latent = torch.empty(2, device="meta")
        self._posted.append((block, latent, dist.irecv(latent, self._source)))

    def take(self, block: int) -> torch.Tensor:
        _, latent, work = self._posted.popleft()
        work.wait()
        return latent


class DeviceSender(p2p.LatentSender):
    """Sends from memory of the device, as over NCCL."""

    def send(self, latent: torch.Tensor) -> None:
        dist.isend(latent.to("meta"), self._target)


@pytest.mark.parametrize(
    ("stages", "sharded", "vae_rank"),
    list(itertools.product((1, 2, 4), (False, True), (False, True))),
)
def test_no_rank_blocks_another(
    monkeypatch: pytest.MonkeyPatch, stages: int, sharded: bool, vae_rank: bool
) -> None:
    layout = Layout(stages=stages, ulysses=1, sharded=sharded, vae_rank=vae_rank)
    assert not deadlocks(layout, monkeypatch)


def test_device_tensors_would_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage waits in its first receive, the first in a collective of both."""
    monkeypatch.setattr(p2p, "LatentReceiver", DeviceReceiver)
    monkeypatch.setattr(p2p, "LatentSender", DeviceSender)
    layout = Layout(stages=2, ulysses=1, sharded=True, vae_rank=False)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "_DEADLOCK_S", 2.0)
        assert deadlocks(layout, monkeypatch)
    assert not deadlocks(Layout(stages=2, ulysses=1, sharded=False, vae_rank=False), monkeypatch)
