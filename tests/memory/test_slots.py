"""A slot is overwritten only after everything that uses it, or that is still on its way to it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
import torch
from clock_device import Clock, ClockDevice
from torch import Tensor

from lipcast.memory.slots import SlotPool, Streamed

SIZE = 16


@pytest.fixture
def device() -> ClockDevice:
    return ClockDevice()


def new_pool(device: ClockDevice, num_slots: int = 2) -> SlotPool:
    return SlotPool(device.vram, device, part="slots", num_slots=num_slots, slot_bytes=SIZE)


def pinned(device: ClockDevice, value: int) -> Streamed:
    """An item in host memory, all of its bytes `value`."""
    home = device.ram.allocate("pinned", SIZE)
    home.fill_(value)

    def fetch(slot: Tensor, after: Sequence[Clock]) -> Clock:
        return device.fetch(slot, home, after=after)

    return Streamed(fetch, lambda slot: slot)


class OnDisk:
    """An item whose copy begins when `read` is called, as if a thread had come to it."""

    def __init__(self, device: ClockDevice, value: int) -> None:
        self._device = device
        self._source = pinned(device, value)
        self.futures: list[Future[Clock]] = []
        self._copies: list[tuple[Tensor, list[Clock]]] = []
        self.item = Streamed(self._fetch, lambda slot: slot)

    def _fetch(self, slot: Tensor, after: Sequence[Clock]) -> Future[Clock]:
        self.futures.append(Future())
        self._copies.append((slot, list(after)))
        return self.futures[-1]

    def read(self) -> None:
        future = self.futures[-1]
        if not future.set_running_or_notify_cancel():
            return
        event = self._source.fetch(*self._copies[-1])
        assert not isinstance(event, Future)
        future.set_result(event)


def test_new_slots_wait_for_what_used_their_memory(device: ClockDevice) -> None:
    with device:
        earlier = device.vram.allocate("activations", SIZE)
        earlier.fill_(1)
        device.vram.release(earlier)
        pool = new_pool(device)
        assert pool.acquire(pinned(device, 2)).tolist() == [2] * SIZE
    assert not device.races


def test_an_item_acquired_again_waits_for_its_copy_to_the_host(device: ClockDevice) -> None:
    item, home = pinned(device, 2), device.ram.allocate("pinned", SIZE)
    with device:
        pool = new_pool(device)
        pool.acquire(item).add_(1)
        pool.copied_out(device.store(home, pool.current_buffer, after=[device.here()]))
        pool.release()
        pool.acquire(item).add_(1)
        pool.release()
        pool.acquire(pinned(device, 9))
        pool.prefetch([pinned(device, 8)])
    assert not device.races and home.tolist() == [3] * SIZE


def test_a_copy_that_nobody_waits_for_does_not_arrive_later(device: ClockDevice) -> None:
    first, abandoned, wanted = pinned(device, 1), OnDisk(device, 2), pinned(device, 3)
    pool = new_pool(device)
    pool.acquire(first)
    pool.prefetch([abandoned.item])
    pool.prefetch([wanted])
    abandoned.read()
    assert abandoned.futures[0].cancelled()
    assert pool.acquire(wanted).tolist() == [3] * SIZE
    assert not device.races


def test_a_copy_that_has_begun_is_waited_for(device: ClockDevice) -> None:
    first, abandoned, wanted = pinned(device, 1), OnDisk(device, 2), pinned(device, 3)
    pool = new_pool(device)
    pool.acquire(first)
    pool.prefetch([abandoned.item])
    abandoned.read()
    pool.prefetch([wanted])
    assert pool.acquire(wanted).tolist() == [3] * SIZE
    assert not device.races


def test_a_slot_whose_copy_failed_still_waits_for_its_users(device: ClockDevice) -> None:
    first = pinned(device, 1)
    with device:
        pool = new_pool(device, num_slots=1)
        pool.acquire(first).add_(1)
        pool.release()
        with pytest.raises(OSError, match="unreadable"):
            pool.acquire(_unreadable())
        assert torch.equal(pool.acquire(pinned(device, 3)), torch.full((SIZE,), 3))
    assert not device.races


def _unreadable() -> Streamed:
    """An item whose file cannot be read."""

    def fetch(slot: Tensor, after: Sequence[Clock]) -> Future[Clock]:
        del slot, after
        future: Future[Clock] = Future()
        future.set_exception(OSError("unreadable"))
        return future

    return Streamed(fetch, lambda slot: slot)
