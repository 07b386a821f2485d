"""CUDA tensors without a GPU: the real code runs on shapes, dtypes and devices alone.

Inside `fake_cuda()` every tensor is PyTorch's `FakeTensor`: no memory is taken and nothing is computed,
but an operation on tensors of two devices, of wrong dtypes or of wrong shapes raises as it would on a
GPU. The true 14B model fits any machine in this way. A CPU build of PyTorch cannot index, fill or copy
tensors of a CUDA device through their Python methods; these go to the same operators by another door.
Streams and events stand still: everything is done at once, so orderings cannot be tested here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:0")
HOPPER = (9, 0)
"""The compute capability that the fake device reports."""

_aten = torch.ops.aten
_Shim = Callable[..., Any]
_SAME_DTYPE = frozenset(
    {
        _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.linear, _aten.matmul,
        _aten.conv1d, _aten.conv2d, _aten.conv3d, _aten.convolution,
        _aten.scaled_dot_product_attention, _aten._scaled_dot_product_cudnn_attention,
        _aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_efficient_attention,
    }
)  # fmt: skip
"""Operators whose tensors must agree: `_scaled_mm` is none of them."""


@contextmanager
def fake_cuda(*, capability: tuple[int, int] = HOPPER) -> Iterator[torch.device]:
    """Make every tensor a fake one, and give the device "cuda" to put them on."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(torch.cuda, _cuda_functions(capability)))
        # PyTorch's own shape functions call `contiguous` too, where no function mode is active.
        methods = {"record_stream": lambda *_: None, "contiguous": _contiguous}
        stack.enter_context(_replaced(Tensor, methods))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_DtypeChecks())  # type: ignore[no-untyped-call]
        stack.enter_context(_CpuBuildShims())
        yield DEVICE


class FakeEvent:
    """A point in the work of a device that does nothing; it has always passed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever `torch.cuda.Event` takes."""

    def record(self, *_: Any) -> None:
        """Return at once."""

    def wait(self, *_: Any) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: nothing is ever under way."""
        return True

    def elapsed_time(self, _: FakeEvent) -> float:
        """Return one millisecond for anything."""
        return 1.0


class FakeStream:
    """A stream of work on a device that does nothing."""

    def __init__(self, device: Any = None, *_: Any, **__: Any) -> None:
        self.device = DEVICE if device is None else torch.device(device)

    def wait_event(self, _: FakeEvent) -> None:
        """Return at once."""

    def wait_stream(self, _: FakeStream) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: nothing is ever under way."""
        return True

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        """Return an event that has passed."""
        return event or FakeEvent()


def _cuda_functions(capability: tuple[int, int]) -> dict[str, Any]:
    """Return replacements for the functions of `torch.cuda` that the engine calls."""
    return {
        "Stream": FakeStream,
        "Event": FakeEvent,
        "current_stream": FakeStream,
        "default_stream": FakeStream,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "set_device": lambda _: None,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda *_: capability,
        "mem_get_info": lambda *_: (80 * 2**30, 80 * 2**30),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
    }


@contextmanager
def _replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of a module or class, and restore them at the end."""
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class _DtypeChecks(TorchDispatchMode):
    """Refuses products of matrices of two dtypes, which fake tensors let pass and a GPU does not."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func.overloadpacket in _SAME_DTYPE:
            found = {arg.dtype for arg in args if isinstance(arg, Tensor)}
            if len(found) > 1:
                names = ", ".join(sorted(str(dtype) for dtype in found))
                raise TypeError(f"{func}: expected operands of one dtype, got {names}")
        return func(*args, **(kwargs or {}))


class _CpuBuildShims(TorchFunctionMode):
    """Sends the Python methods that a CPU build refuses for CUDA tensors to their operators."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        return _SHIMS.get(func, func)(*args, **(kwargs or {}))


def _get_item(x: Tensor, index: Any) -> Tensor:
    view, tensors = _basic_view(x, index)
    return _aten.index.Tensor(view, tensors) if tensors else view


def _set_item(x: Tensor, index: Any, value: Any) -> None:
    view, tensors = _basic_view(x, index)
    if tensors:
        _aten.index_put_.default(view, tensors, value)
    elif isinstance(value, Tensor):
        _aten.copy_.default(view, value)
    else:
        _aten.fill_.Scalar(view, value)


def _basic_view(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply slices, integers, None and the ellipsis; what is left are indices that are tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    named = sum(part is not None and part is not Ellipsis for part in parts)
    axis, tensors = 0, list[Tensor | None]()
    for part in parts:
        if part is Ellipsis:
            axis += x.dim() - axis - (named - _num_named(parts, before=part))
        elif part is None:
            x, axis = _aten.unsqueeze.default(x, axis), axis + 1
        elif isinstance(part, slice):
            first, last, step = part.indices(x.shape[axis])
            x = _aten.slice.Tensor(x, axis, first, max(first, last), step)
            axis += 1
        elif isinstance(part, Tensor | list):
            tensors += [None] * (axis - len(tensors))
            tensors.append(part if isinstance(part, Tensor) else torch.tensor(part))
            axis += 1
        else:
            x = _aten.select.int(x, axis, int(part))
    return x, tensors


def _num_named(parts: tuple[Any, ...], *, before: Any) -> int:
    """Return the number of axes that are named before a part."""
    count = 0
    for part in parts:
        if part is before:
            break
        count += part is not None
    return count


def _copy(target: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    result: Tensor = _aten.copy_.default(target, torch.as_tensor(source), non_blocking)
    return result


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype)
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    device = x.device if device is None else _with_index(device)
    dtype = x.dtype if dtype is None else dtype
    same = device == x.device and dtype == x.dtype
    if same and not copy and (layout is None or x.is_contiguous(memory_format=layout)):
        return x
    if device != x.device:
        # In two steps: PyTorch computes with the values of small constants, which no CUDA tensor has.
        return _copy(_empty_as(x, device, dtype), x, non_blocking)
    result: Tensor = _aten._to_copy.default(x, dtype=dtype, memory_format=layout)
    return result


def _empty_as(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return memory for a copy of x in the same order of axes."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    dense = torch.empty([x.shape[axis] for axis in order], dtype=dtype, device=device)
    return dense.permute([order.index(axis) for axis in range(x.dim())])


def _with_index(device: torch.device) -> torch.device:
    return DEVICE if device.type == "cuda" and device.index is None else device


def _tensor(data: Any, *, device: Any = None, dtype: Any = None, **_: Any) -> Tensor:
    made = torch.tensor(data, dtype=dtype)
    return made if device is None else _to(made, device)


def _cuda(x: Tensor, device: Any = None, **kwargs: Any) -> Tensor:
    return _to(x, DEVICE if device is None else device, **kwargs)


def _contiguous(x: Tensor, memory_format: Any = torch.contiguous_format) -> Tensor:
    if x.is_contiguous(memory_format=memory_format):
        return x
    result: Tensor = _aten.clone.default(x, memory_format=memory_format)
    return result


def _numpy(x: Tensor, **_: Any) -> Any:
    """Return zeros of the tensor's shape: a fake tensor has no values."""
    assert x.device.type == "cpu", "numpy() of a tensor that is not in host memory"
    return np.zeros(tuple(x.shape), np.dtype(str(x.dtype).removeprefix("torch.")))


def _iterate(x: Tensor) -> Iterator[Tensor]:
    return iter(torch.unbind(x))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, **kwargs: Any
) -> Tensor:
    """Compute as the fused kernel that PyTorch picks on Hopper; the output is laid out as the query."""
    if not q.is_cuda or attn_mask is not None or dropout_p:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, **kwargs)
    scale, causal = kwargs.get("scale"), kwargs.get("is_causal", False)
    if q.dtype in (torch.bfloat16, torch.float16):
        fused = _aten._scaled_dot_product_cudnn_attention.default(
            q, k, v, None, False, 0.0, causal, False, scale=scale
        )
    else:
        fused = _aten._scaled_dot_product_efficient_attention.default(
            q, k, v, None, False, 0.0, causal, scale=scale
        )
    result: Tensor = fused[0]
    return result


def _interpolate(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **kwargs: Any
) -> Tensor:
    """Copy one expanded view, as nearest neighbours by a whole factor do."""
    if not x.is_cuda or not mode.startswith("nearest") or scale_factor is None:
        return functional.interpolate(x, size, scale_factor, mode, **kwargs)
    scales = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor,) * 2
    rows, columns = (int(scale) for scale in scales)
    *lead, height, width = x.shape
    expanded = x.unsqueeze(-2).unsqueeze(-1).expand(*lead, height, rows, width, columns)
    return expanded.reshape(*lead, height * rows, width * columns)


_SHIMS: Mapping[Any, _Shim] = MappingProxyType(
    {
        Tensor.__getitem__: _get_item,
        Tensor.__setitem__: _set_item,
        Tensor.__iter__: _iterate,
        Tensor.copy_: _copy,
        Tensor.to: _to,
        Tensor.cuda: _cuda,
        Tensor.pin_memory: lambda x, *_: x,
        torch.tensor: _tensor,
        torch._fused_sdp_choice: lambda *_: SDPBackend.CUDNN_ATTENTION.value,
        Tensor.numpy: _numpy,
        functional.interpolate: _interpolate,
        functional.scaled_dot_product_attention: _attention,
    }
)
