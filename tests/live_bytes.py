"""How much memory tensors hold while something is computed, with fake tensors, too."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages born inside that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def count(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What a dispatch mode calls for every operation."""
        tree_map_only(Tensor, lambda t: self._add(t, born=False), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._add(t, born=True), result)
        return result

    def _add(self, tensor: Tensor, *, born: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if born else 0
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


# Not in the class body: there, torch wraps it in a way that imports its compiler, many seconds.
LiveBytes.__torch_dispatch__ = LiveBytes.count  # type: ignore[method-assign, assignment]
