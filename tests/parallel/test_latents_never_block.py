"""No order in which ranks block each other where send and receive of a pair wait for the other side."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from lipcast.parallel.p2p import LatentReceiver, LatentSender

_TIMEOUT_S = 5.0


class _Done:
    def wait(self) -> None:
        """Arrived already."""


class LazyPairs:
    """Two ranks whose device tensors meet as on NCCL: either side of the first call holds its thread."""

    def __init__(self) -> None:
        self.pair = threading.Barrier(2)
        self.collective = threading.Barrier(2)
        self._sent: list[torch.Tensor] = []
        self._wanted: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def isend(self, tensor: torch.Tensor, _peer: int) -> _Done:
        self._meet(tensor)
        with self._lock:
            self._sent.append(tensor)
        return _Done()

    def irecv(self, tensor: torch.Tensor, _peer: int) -> _Done:
        self._meet(tensor)
        return _Done()

    def _meet(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            self.pair.wait(_TIMEOUT_S)


def run(*ranks: Callable[[], None]) -> list[BaseException]:
    """Run each rank in a thread; what they raised."""
    errors: list[BaseException] = []

    def guarded(rank: Callable[[], None]) -> None:
        try:
            rank()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def order_of_a_sharded_pipeline(
    network: LazyPairs, expect: Callable[[], None], send: Callable[[], None]
) -> list[BaseException]:
    """The second stage looks ahead before it gathers weights; the first sends after it has gathered."""

    def first_stage() -> None:
        network.collective.wait(_TIMEOUT_S / 5)
        send()

    def second_stage() -> None:
        expect()
        network.collective.wait(_TIMEOUT_S / 5)

    return run(first_stage, second_stage)


def test_the_model_of_lazy_pairs_can_deadlock() -> None:
    network, latent = LazyPairs(), torch.empty(2, device="meta")
    errors = order_of_a_sharded_pipeline(
        network,
        lambda: network.irecv(latent, 0) and None,
        lambda: network.isend(latent, 1) and None,
    )
    assert any(isinstance(error, threading.BrokenBarrierError) for error in errors)


def test_latents_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    network = LazyPairs()
    monkeypatch.setattr(dist, "irecv", network.irecv)
    monkeypatch.setattr(dist, "isend", network.isend)
    device = torch.device("meta")
    receiver, sender = LatentReceiver(0, (2,), device), LatentSender(1)
    sent = torch.ones(2)
    errors = order_of_a_sharded_pipeline(
        network, lambda: receiver.expect(0), lambda: sender.send(sent)
    )
    assert not errors
    assert receiver.take(0).device == device
    sender.finish()
