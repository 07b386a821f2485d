"""Seconds by part, in total and since the last lap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("speech_s", "dit_s", "vae_s")


class Stopwatch:
    """Adds up wall time by part; on a GPU it waits for the work of a part to be done, not for what
    runs beside it on other streams."""

    def __init__(self, device: torch.device, parts: tuple[str, ...] = PARTS) -> None:
        self._device, self._parts = device, parts
        self._totals = dict.fromkeys(parts, 0.0)
        self._lap = dict.fromkeys(parts, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the body to `name`, also if it raises."""
        begin = time.perf_counter()
        try:
            yield
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
        finally:
            elapsed = time.perf_counter() - begin
            self._totals[name] += elapsed
            self._lap[name] += elapsed

    def lap(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        lap, self._lap = self._lap, dict.fromkeys(self._parts, 0.0)
        return lap

    def totals(self) -> dict[str, float]:
        return dict(self._totals)
