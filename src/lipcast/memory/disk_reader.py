"""Reader of groups of parameters that stay on disk: a thread reads ahead, through pinned staging buffers.

Inputs: a tensor source, host memory for the staging buffers, a copier. Output: futures of copies to the
device. Invariant: a staging buffer is overwritten only after its last copy has ended. An error while reading
is raised by the future's `result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor

from lipcast.memory.arena import Arena
from lipcast.memory.copier import Copier, Event
from lipcast.memory.layer_params import FlatParams
from lipcast.planning import items
from lipcast.planning.workload import DISK_STAGING_LAYERS
from lipcast.weights.source import TensorSource


class DiskReader:
    """Reads one group at a time, in the order of the calls."""

    def __init__(
        self, source: TensorSource, *, host: Arena, copier: Copier, num_bytes: int
    ) -> None:
        """`num_bytes` is the size of the largest group. Raises torch.OutOfMemoryError."""
        self._source, self._host, self._copier = source, host, copier
        self._copied: list[Event] = [None] * DISK_STAGING_LAYERS
        self._num_read = 0
        with ExitStack() as stack:
            self._staging = [
                stack.enter_context(host.allocated(items.STAGING, num_bytes)) for _ in self._copied
            ]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lipcast-disk")

    def fetch(self, params: FlatParams, target: Tensor, *, after: Sequence[Event]) -> Future[Event]:
        """Read `params`, then copy it to `target` after all events of `after`."""
        return self._thread.submit(self._fetch, params, target, list(after))

    def read(self, params: FlatParams, buffer: Tensor) -> None:
        """Read `params` into host memory, after the reads in progress: a source serves one at a time."""
        self._thread.submit(read_params, self._source, params, buffer).result()

    def close(self) -> None:
        """Finish the read in progress, cancel the others, and free the staging buffers."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        with ExitStack() as stack:  # frees all of them, even if waiting for one raises
            for buffer in self._staging:
                stack.callback(self._host.release, buffer)
            self._staging = []
            for copied in self._copied:
                if copied is not None:
                    self._copier.finish(copied)

    def _fetch(self, params: FlatParams, target: Tensor, after: Sequence[Event]) -> Event:
        index = self._num_read % len(self._staging)
        self._num_read += 1
        if self._copied[index] is not None:
            self._copier.finish(self._copied[index])
        staging = self._staging[index]
        read_params(self._source, params, staging)
        copied = self._copier.fetch(
            target[: params.num_bytes], staging[: params.num_bytes], after=after
        )
        self._copied[index] = copied
        return copied


def read_params(source: TensorSource, params: FlatParams, buffer: Tensor) -> None:
    """Read the tensors of a group into `buffer`, in the dtypes of its layout."""
    with torch.no_grad():
        for name, view in params.layout.views(buffer).items():
            view.copy_(source.read(name))
