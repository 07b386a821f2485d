"""As much of torch.cuda as pinning and timing use, with two GPUs that this machine does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

REFUSED = 2
"""cudaErrorMemoryAllocation."""
ILLEGAL_ADDRESS = 700


class FakeCuda:
    """Device and runtime state. `install` puts it in the place of torch.cuda's functions."""

    def __init__(self) -> None:
        self.current = 0
        self.refusal = 0
        """What cudaHostRegister returns; 0 is success."""
        self.last_error = 0
        """What the next launch reports."""
        self.is_broken = False
        """Whether every launch fails, as after an illegal access."""
        self.pinned: dict[int, tuple[int, int, int]] = {}
        """By address: size, flags, and the device that was current."""
        self.recorded_on: list[int] = []
        """The current device at every record of an event."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool = False) -> None:
                self.enable_timing = enable_timing

            def record(self) -> None:
                fake.recorded_on.append(fake.current)

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Event) -> float:
                assert self.enable_timing and end.enable_timing
                return 2.0

        patch.setattr(torch.cuda, "cudart", lambda: self)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch, "zeros", lambda size, *, device: _LaunchTarget(self, device))
        empty = torch.empty

        def empty_on_cpu(size: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
            assert device.index == self.current
            return empty(size, dtype=dtype)

        patch.setattr("lipcast.memory.probe.torch.empty", empty_on_cpu)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def launch(self) -> None:
        """Report the error that the runtime remembers, and forget it."""
        code, self.last_error = self.last_error, ILLEGAL_ADDRESS if self.is_broken else 0
        if code == ILLEGAL_ADDRESS:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if code:
            raise torch.AcceleratorError("CUDA error: out of memory")

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if self.refusal:
            self.last_error = self.refusal
            return self.refusal
        self.pinned[address] = size, flags, self.current
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.pinned[address]
        return 0


class _LaunchTarget:
    """A tensor of a GPU on which one operation is launched."""

    def __init__(self, cuda: FakeCuda, device: torch.device) -> None:
        self._cuda, self._device = cuda, device

    def add_(self, value: int) -> None:
        assert self._cuda.current == self._device.index
        self._cuda.launch()
