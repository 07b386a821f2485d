"""A device of ordinary memory on which any allocation and any copy can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from fake_device import CPU, LateCopier
from torch import Tensor

from lipcast.memory.arena import Arena, DeviceMaker
from lipcast.memory.device_context import DeviceContext

Fault = Literal["allocation", "copy"]


class FailingMaker(DeviceMaker):
    """Memory that is refused at allocation number `fail_at`, as the driver refuses it."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.num_made = 0
        self.fail_at: int | None = None

    def make(self, num_bytes: int) -> Tensor:
        number, self.num_made = self.num_made, self.num_made + 1
        if number == self.fail_at:
            raise RuntimeError("CUDA driver error: out of memory")
        return super().make(num_bytes)


class FailingDevice:
    """A device context with its faults."""

    def __init__(self) -> None:
        self.maker, self.copier = FailingMaker(), LateCopier()
        self.vram, self.ram = Arena("device", self.maker), Arena("host", self.maker)
        self.context = DeviceContext(CPU, self.vram, self.ram, self.copier)

    @property
    def used_bytes(self) -> tuple[int, int]:
        """Bytes in use on the device and on the host."""
        return self.vram.used_bytes, self.ram.used_bytes

    def failures_of(self, call: Callable[[], object], fault: Fault = "allocation") -> Iterator[int]:
        """Make the 1st, 2nd, ... allocation or copy of `call` fail, and yield after each failure.

        Whoever iterates brings back the state that `call` begins with. The last call succeeds.
        """
        number = 0
        while self._fails(call, fault, number):
            yield number
            number += 1

    def _fails(self, call: Callable[[], object], fault: Fault, number: int) -> bool:
        if fault == "allocation":
            self.maker.fail_at = self.maker.num_made + number
        else:
            self.copier.fail_at = self.copier.num_copies + number
        try:
            call()
        except torch.OutOfMemoryError:
            return True
        finally:
            self.maker.fail_at = self.copier.fail_at = None
        return False
