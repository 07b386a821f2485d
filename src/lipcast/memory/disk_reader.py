"""Packs that live on disk, read ahead in a thread through pinned staging buffers.

Input: a tensor source, host memory for the staging, a copier. Output: futures of copies to the device.
Invariant: a staging buffer is overwritten only when its last copy is done. Errors of reading surface where
the future's result is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event
from lipcast.memory.layer_params import FlatParams
from lipcast.planning.search import DISK_STAGING_LAYERS
from lipcast.weights.source import TensorSource

STAGING = "staging for layers from disk"


class DiskReader:
    """Reads one pack at a time, in the order of the calls."""

    def __init__(
        self, source: TensorSource, *, host: Arena, copier: Copier, num_bytes: int
    ) -> None:
        """`num_bytes`: of the biggest pack."""
        self._source, self._host, self._copier = source, host, copier
        self._staging = [host.allocate(STAGING, num_bytes) for _ in range(DISK_STAGING_LAYERS)]
        self._copied: list[Event] = [None] * len(self._staging)
        self._num_read = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lipcast-disk")

    def fetch(self, pack: FlatParams, target: Tensor, *, after: Sequence[Event]) -> Future[Event]:
        """Read `pack` and copy it to `target` when all of `after` are done."""
        return self._thread.submit(self._fetch, pack, target, list(after))

    def read(self, pack: FlatParams, buffer: Tensor) -> None:
        """Read `pack` into host memory, behind what is under way: sources serve one at a time."""
        self._thread.submit(read_params, self._source, pack, buffer).result()

    def close(self) -> None:
        """Finish what is under way and give the staging back."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for mark in self._copied:
            if mark is not None:
                self._copier.finish(mark)
        for buffer in self._staging:
            self._host.release(buffer)
        self._staging.clear()

    def _fetch(self, pack: FlatParams, target: Tensor, after: Sequence[Event]) -> Event:
        index = self._num_read % len(self._staging)
        self._num_read += 1
        if self._copied[index] is not None:
            self._copier.finish(self._copied[index])
        staging = self._staging[index]
        read_params(self._source, pack, staging)
        mark = self._copier.fetch(target[: pack.num_bytes], staging[: pack.num_bytes], after=after)
        self._copied[index] = mark
        return mark


def read_params(source: TensorSource, pack: FlatParams, buffer: Tensor) -> None:
    """Read the tensors of a pack into `buffer`, in the dtypes of its layout."""
    with torch.no_grad():
        for name, view in pack.layout.views(buffer).items():
            view.copy_(source.read(name))
