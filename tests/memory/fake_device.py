"""A device with a byte budget and late copies, made of ordinary memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lipcast.memory.arena import Arena, DeviceMaker

CPU = torch.device("cpu")


@dataclass(eq=False)
class LateMark:
    """A copy that has not happened until somebody waits for it."""

    copy: Callable[[], None] | None = None
    after: list[LateMark] = field(default_factory=list)

    def happen(self) -> None:
        for mark in self.after:
            mark.happen()
        copy, self.copy, self.after = self.copy, None, []
        if copy is not None:
            copy()


class LateCopier:
    """Copies happen as late as they may: when they are waited for, or a later copy needs them.

    Until then a target on the device holds bytes that are not a number in any float format. So
    whoever reads without waiting, or overwrites what is still to be copied, gets a wrong result.
    `fail_at`: the number of the copy that raises torch.OutOfMemoryError instead.
    """

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.num_copies = 0
        self.bytes_to_device = 0
        self.bytes_to_host = 0
        self.fail_at = fail_at

    def here(self) -> LateMark:
        return LateMark()

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[LateMark]) -> LateMark:
        mark = self._begin(target, source, after)
        self.bytes_to_device += source.nbytes
        for earlier in mark.after:
            earlier.happen()
        target.fill_(0xFF)
        return mark

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[LateMark]) -> LateMark:
        self.bytes_to_host += source.nbytes
        return self._begin(target, source, after)

    def wait(self, mark: LateMark) -> None:
        mark.happen()

    def finish(self, mark: LateMark) -> None:
        mark.happen()

    def _begin(self, target: Tensor, source: Tensor, after: Iterable[LateMark]) -> LateMark:
        assert target.shape == source.shape and target.dtype == source.dtype == torch.uint8
        number, self.num_copies = self.num_copies, self.num_copies + 1
        if number == self.fail_at:
            raise torch.OutOfMemoryError(f"injected at copy {number}")
        return LateMark(partial(_copy, target, source), list(after))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def arenas(vram_bytes: int | None = None, ram_bytes: int | None = None) -> tuple[Arena, Arena]:
    """Device and host memory with budgets."""
    return (
        Arena("device", DeviceMaker(CPU), budget_bytes=vram_bytes),
        Arena("host", DeviceMaker(CPU), budget_bytes=ram_bytes),
    )
