"""A GPU's graphs on the CPU: they launch the operators that were recorded, with the numbers of that time.

Whatever Python computed while the work was recorded stays as it was, as in a CUDA graph: a replay runs no
Python of the work. Reading a value back to the host cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipcast.memory.graphs import CaptureError

READ_BACK = frozenset(
    {
        "item",
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "equal",
        "masked_select",
        "unique_dim",
        "_unique2",
    }
)
Launch = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class NoReadBack(TorchDispatchMode):
    """Refuses operators whose result the host has to wait for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if name in READ_BACK:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return func(*args, **(kwargs or {}))


class Recorder(NoReadBack):
    """Keeps every operator with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.launches.append((func, args, kwargs or {}, result))
        return result


class RecordedOperators:
    """A recording."""

    def __init__(self, launches: Sequence[Launch], outputs: Sequence[Tensor]) -> None:
        self._launches = [launch for launch in launches if not _is_free(launch)]
        self._outputs = outputs
        for tensor in outputs:
            tensor.fill_(float("nan"))  # recording computes nothing

    def replay(self) -> Sequence[Tensor]:
        for func, args, kwargs, before in self._launches:
            now = func(*args, **kwargs)
            if func._schema.is_mutable:
                continue
            pairs = zip(tree_leaves(before), tree_leaves(now), strict=True)
            for into, new in ((a, b) for a, b in pairs if isinstance(a, Tensor)):
                into.copy_(new)
        return self._outputs


class RecordedGraphs:
    """A `GraphBackend`; `fail_with` makes recording fail."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.recordings: list[RecordedOperators] = []
        self.num_recorded = self.num_released = 0
        self.fail_with: str | None = None

    def record(self, work: Callable[[], Sequence[Tensor]]) -> RecordedOperators:
        if self.fail_with is not None:
            raise CaptureError(self.fail_with)
        try:
            with Recorder() as recorder:
                outputs = work()
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        self.recordings.append(RecordedOperators(recorder.launches, outputs))
        self.num_recorded += 1
        return self.recordings[-1]

    def release(self) -> None:
        self.num_released += len(self.recordings)
        self.recordings = []


def _is_free(launch: Launch) -> bool:
    """Whether nothing is launched: memory without content, or another view of an input."""
    func, args, kwargs, result = launch
    name = func._schema.name.split("::")[1]
    if name.startswith(("empty", "new_empty")):
        return True
    if func._schema.is_mutable:
        return False
    given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return bool(made) and all(_storage(x) in given for x in made)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
