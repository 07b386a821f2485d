"""Read the next tensors of a source while the last one is being used.

A GPU quantises a tensor while the next one comes from the disk. Input: a source whose tensors are mostly read
in order. Output: the same source. One thread reads; at most `depth` tensors wait, and whatever is read out of
order is read at once. The thread ends with the source, or once the last tensor has been read.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from lipcast.weights.source import TensorSource

DEPTH = 2
"""Tensors that wait in host memory, 141 MB each at most in the published model."""


class ReadAhead(TensorSource):
    """A source that reads ahead once, from its first tensor to its last."""

    def __init__(self, base: TensorSource, *, depth: int = DEPTH) -> None:
        self._base, self._depth = base, depth
        self.path, self.files, self.metadata = base.path, base.files, base.metadata
        self.infos = base.infos
        self._left = deque(self.infos)
        """Names that reading has not begun of."""
        self._waiting: deque[tuple[str, Future[Tensor]]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def read(self, name: str) -> Tensor:
        if name not in self._upcoming():
            # A source serves one at a time: after what is being read.
            wait = None if self._thread is None else self._thread.submit(self._base.read, name)
            return self._base.read(name) if wait is None else wait.result()
        while self._next() != name:
            self._waiting.popleft()[1].cancel()
        _, found = self._waiting.popleft()
        self._begin()
        try:
            return found.result()
        finally:
            if not self._waiting:
                self.close()

    def close(self) -> None:
        """Read nothing ahead any more. Further calls do nothing."""
        thread, self._thread = self._thread, None
        self._left.clear()
        self._waiting.clear()
        if thread is not None:
            thread.shutdown(cancel_futures=True)

    def _upcoming(self) -> list[str]:
        """Return the names that are waited for, or the first one."""
        return [name for name, _ in self._waiting] or list(self._left)[:1]

    def _next(self) -> str:
        """Return the name of the next tensor, which is being read."""
        if not self._waiting:
            self._begin()
        return self._waiting[0][0]

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lipcast-read-ahead")
        while self._left and len(self._waiting) < self._depth:
            name = self._left.popleft()
            self._waiting.append((name, self._thread.submit(self._base.read, name)))
