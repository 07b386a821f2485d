"""Triton's interpreter, made to compute as a GPU does.

Import this before the kernels. Triton 3.9 truncates where a GPU rounds to bfloat16, and multiplies the
bytes of bfloat16 matrices; both are mended here.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")

_cast, _dot = interpreter.InterpreterBuilder.cast_impl, interpreter.InterpreterBuilder.create_dot


def _torch(handle: Any) -> torch.Tensor:
    data = torch.from_numpy(np.ascontiguousarray(handle.data))
    return data.view(torch.bfloat16) if handle.dtype.scalar == tl.bfloat16 else data


def _cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
    kinds = src.dtype.scalar, dst_type.scalar
    if kinds == (tl.float32, tl.bfloat16):
        rounded = _torch(src).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, dst_type.scalar)
    if kinds == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_torch(src).float().numpy(), dst_type.scalar)
    return _cast(self, src, dst_type)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
    if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
        product = (_torch(a).float() @ _torch(b).float()).numpy()
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)
    return _dot(self, a, b, d, *precision)


interpreter.InterpreterBuilder.cast_impl = _cast_impl
interpreter.InterpreterBuilder.create_dot = _create_dot
