"""Count what a piece of work asks of a GPU: launches, bytes moved, arithmetic.

Input: the operators that PyTorch dispatches while an `OperatorCount` is active, of real or of fake
tensors. Output: launches and bytes by operator, FLOP of matrix products, attention and convolutions.
An operator that computes is one launch that reads its inputs and writes its outputs once; views and
uninitialised memory are free; expanded axes are read once. What runs on the CPU only is left out, and
copies over the link are counted apart. Operators are sorted by their names, so that a fused one
counts as itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal["gemm", "attention", "convolution", "elementwise", "link"]
_ATTENTION = re.compile(r"attention|attend")
_CONVOLUTION = re.compile(r"conv[123]d|convolution")
_GEMM = re.compile(r"^(add|b|badd|_scaled_|_int_)?b?mm(_v2)?$|^linear$|^matmul$|_linear$|_matmul$")
_ALLOCATION = re.compile(r"^(new_)?empty(_like|_strided)?$")
_WRITES_ONLY = frozenset({"copy_", "fill_", "zero_"})
"""In-place operators that do not read what they overwrite."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work that was asked of the GPU."""

    launches: int
    elementwise_bytes: float
    """Everything but matrix products, attention and convolutions."""
    gemm_flop: float
    attention_flop: float
    convolution_flop: float
    link_bytes: float
    """Copies between host and device."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, n) + getattr(other, n) for n in _FIELDS))

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, factor: int) -> Work:
        return Work(*(getattr(self, n) * factor for n in _FIELDS))


_FIELDS = tuple(Work.__dataclass_fields__)


class OperatorCount(TorchDispatchMode):
    """Use it as a context manager around the work; read it afterwards, or `reset` it between."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[tuple[str, Kind]] = Counter()
        """Launches by (operator, kind)."""
        self.num_bytes: Counter[tuple[str, Kind]] = Counter()
        self.flop: Counter[tuple[str, Kind]] = Counter()

    def reset(self) -> None:
        """Forget what was counted."""
        for counter in (self.launches, self.num_bytes, self.flop):
            counter.clear()

    def total(self) -> Work:
        """Sum everything up."""
        return Work(
            launches=sum(self.launches.values()),
            elementwise_bytes=_of_kind(self.num_bytes, "elementwise"),
            gemm_flop=_of_kind(self.flop, "gemm"),
            attention_flop=_of_kind(self.flop, "attention"),
            convolution_flop=_of_kind(self.flop, "convolution"),
            link_bytes=_of_kind(self.num_bytes, "link"),
        )

    def rows(self) -> list[tuple[str, Kind, int, int]]:
        """Return (operator, kind, launches, bytes), most bytes first."""
        order = sorted(self.num_bytes, key=lambda key: -self.num_bytes[key])
        return [(*key, self.launches[key], self.num_bytes[key]) for key in order]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        name = func._schema.name.split("::")[1]
        if func.namespace == "lipcast":
            read, into = _split_arguments(func, args)
            written = [*into, *_tensors(result)]
        else:
            read = _tensors((args, {n: v for n, v in kwargs.items() if n != "out"}))
            written = _tensors(result) or read[:1]
        if not any(t.device.type == "cuda" for t in read + written) or _is_free(
            func, name, read, written
        ):
            return
        key = name, _kind(name, read, written)
        reads = read[1:] if name in _WRITES_ONLY else read
        self.launches[key] += 1
        self.num_bytes[key] += sum(map(_touched_bytes, [*reads, *written]))
        if name in FLOP_OF:
            self.flop[key] += FLOP_OF[name](read, written[0])


def _of_kind(counts: Counter[tuple[str, Kind]], kind: Kind) -> int:
    return sum(count for (_, of), count in counts.items() if of == kind)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _split_arguments(func: Any, args: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return what one of our own operators reads, and what it writes without reading it."""
    names = zip(func._schema.arguments, args, strict=True)
    given = [(argument.is_write, _tensors(value)) for argument, value in names]
    read, written = (
        [t for w, each in given for t in each if w == wanted] for wanted in (False, True)
    )
    return read, written


def _is_free(func: Any, name: str, read: list[Tensor], written: list[Tensor]) -> bool:
    """Return whether nothing is launched: memory without content, or another view of an input."""
    if func.namespace == "prim" or _ALLOCATION.match(name):
        return True
    if func._schema.is_mutable or not read:
        return False
    storages = {t.untyped_storage()._cdata for t in read}
    return all(t.untyped_storage()._cdata in storages for t in written)


def _kind(name: str, read: list[Tensor], written: list[Tensor]) -> Kind:
    if _ATTENTION.search(name):
        return "attention"
    if _CONVOLUTION.search(name):
        return "convolution"
    if _GEMM.search(name):
        return "gemm"
    copies = name in {"copy_", "_to_copy", "to"}
    crosses = len({t.device.type for t in read + written}) > 1
    return "link" if copies and crosses else "elementwise"


def _touched_bytes(tensor: Tensor) -> int:
    """Return the bytes of the distinct elements."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(side for side, stride in sides if stride) * tensor.element_size()


def _linear_flop(read: list[Tensor], out: Tensor) -> int:
    per_element = 2 if read[0].dtype == torch.float4_e2m1fn_x2 else 1
    return 2 * out.numel() * read[0].shape[-1] * per_element


def _addmm_flop(read: list[Tensor], out: Tensor) -> int:
    return 2 * out.numel() * read[1].shape[-1]


def _attention_flop(read: list[Tensor], out: Tensor) -> int:
    """Return the operations of q kᵀ and of the product with v; q [..., T, d], k [..., S, d]."""
    keys = read[1].shape[-2]
    return 2 * read[0].numel() * keys + 2 * out.numel() * keys


def _segments_flop(read: list[Tensor], out: Tensor) -> int:
    """Return the same for planes of a ring; q [T, N, d], planes of keys and values, keys of the sink."""
    num_planes = (len(read) - 4) // 2
    slots, tokens = read[num_planes].shape[:2]
    return 4 * out.numel() * (slots * tokens + read[-1].shape[0])


def _convolution_flop(read: list[Tensor], out: Tensor) -> int:
    return 2 * out.numel() * prod(read[1].shape[1:])


FLOP_OF: Mapping[str, Callable[[list[Tensor], Tensor], int]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "linear",
                "mm",
                "bmm",
                "matmul",
                "_scaled_mm",
                "_scaled_mm_v2",
                "_int_mm",
                "stored_linear",
            ),
            _linear_flop,
        ),
        **dict.fromkeys(("addmm", "baddbmm"), _addmm_flop),
        **dict.fromkeys(
            (
                "scaled_dot_product_attention",
                "_scaled_dot_product_cudnn_attention",
                "_scaled_dot_product_flash_attention",
                "_scaled_dot_product_efficient_attention",
            ),
            _attention_flop,
        ),
        "attend_segments": _segments_flop,
        **dict.fromkeys(
            ("conv1d", "conv2d", "conv3d", "convolution", "causal_conv3d"), _convolution_flop
        ),
    }
)
"""Operator name -> FLOP of (tensors read, tensor written)."""
