"""Make functions that launch kernels operators of PyTorch, `torch.ops.lipcast`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Operator = tuple[Callable[..., Any], Callable[..., Any]]
"""What launches the kernel, and what gives shapes and dtypes on fake tensors."""


def register_operators(operators: Mapping[str, Operator], schemas: Mapping[str, str]) -> None:
    """Define the operators by name, with their schemas."""
    for name, (launch, shapes) in operators.items():
        operator = f"lipcast::{name}"
        torch.library.define(operator, schemas[name])
        torch.library.impl(operator, "CompositeExplicitAutograd")(launch)
        torch.library.register_fake(operator)(shapes)
