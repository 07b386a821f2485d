"""Make functions that launch kernels operators of PyTorch, `torch.ops.lipcast`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Operator = tuple[Callable[..., Any], Callable[..., Any]]
"""What launches the kernel, and what gives shapes and dtypes on fake tensors."""


def register_operators(operators: Mapping[str, Operator], schemas: Mapping[str, str]) -> None:
    """Define the operators by name, with their schemas."""
    for name, (launch, shapes) in operators.items():
        operator = f"lipcast::{name}"
        torch.library.define(operator, schemas[name])
        torch.library.impl(operator, "CompositeExplicitAutograd")(on_its_device(launch))
        torch.library.register_fake(operator)(shapes)


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Return what launches on the GPU that the tensors are on, whichever the calling thread has chosen.

    Triton launches on the thread's own GPU and stream, and a new thread has the first one.
    """

    def launched(*args: Any) -> Any:
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        if first.device.type != "cuda":
            return launch(*args)
        with torch.cuda.device(first.device):
            return launch(*args)

    return launched
