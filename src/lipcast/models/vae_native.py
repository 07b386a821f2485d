"""The convolution steps in native code: bfloat16 on AMX tiles, whole chains at a time.

Inputs and outputs are those of `Kernels` (the slow twin is `TorchKernels`). The work is in
`vae_native.c`; here are its structures, its weights' layout, and a team of threads.
Invariants: sums in float32; the result does not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lipcast.models.vae_kernels import ConvStep
from lipcast.models.vae_native_build import NativeUnavailableError, load_library

TILE = 16
CHUNK = 32
"""Values of one tile row."""
MAX_CHAIN = 16

_POINTERS = ("weight", "shortcut", "bias", "gamma", "past", "new_past")
_NUMBERS = (
    "in_frames", "num_past", "in_height", "in_width", "in_ch",
    "out_frames", "out_height", "out_width", "out_ch",
    "kernel_t", "kernel", "stride_t", "stride", "pad", "up", "residual",
)  # fmt: skip


class _Conv(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _NUMBERS),
    )


class _Chain(ctypes.Structure):
    _fields_ = (
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("input_frames", ctypes.c_int32),
        ("output_is_float", ctypes.c_int32),
        ("num_convs", ctypes.c_int32),
        ("convs", _Conv * MAX_CHAIN),
    )


@dataclass(frozen=True)
class PackedStep:
    """A step, its weights cut into tiles."""

    step: ConvStep
    weight: Tensor
    bias: Tensor
    gamma: Tensor | None
    shortcut: Tensor | None


class NativeKernels:
    """Chains of steps by the native library, on a team of `num_threads` threads."""

    def __init__(self, cache_dir: Path, *, num_threads: int) -> None:
        """Raise NativeUnavailableError where this machine cannot."""
        library = load_library(cache_dir)
        library.lipcast_team_new.restype = ctypes.c_void_p
        library.lipcast_team_free.argtypes = [ctypes.c_void_p]
        library.lipcast_run_chain.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Chain)]
        self._library = library
        self._team = library.lipcast_team_new(num_threads)
        if not self._team:
            raise NativeUnavailableError("the system does not grant the use of matrix tiles")
        self._one_at_a_time = threading.Lock()
        weakref.finalize(self, library.lipcast_team_free, self._team)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def pack(self, step: ConvStep) -> PackedStep:
        return PackedStep(
            step,
            weight=_pack_kernel(step.weight_OITKK),
            bias=step.bias_O.float().contiguous(),
            gamma=None if step.gamma_I is None else step.gamma_I.float().contiguous(),
            shortcut=None if step.shortcut_OI is None else _pack_matrix(step.shortcut_OI),
        )

    def run(
        self,
        steps: Sequence[PackedStep],
        x_THWC: Tensor,
        *,
        pasts: Sequence[Tensor | None],
        num_frames: Sequence[int],
        as_float: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        assert x_THWC.is_contiguous() and x_THWC.dtype == self.dtype
        assert len(steps) <= MAX_CHAIN
        chain = _Chain(
            input=x_THWC.data_ptr(),
            input_frames=x_THWC.shape[0],
            output_is_float=as_float,
            num_convs=len(steps),
        )
        height, width = x_THWC.shape[1:3]
        newest = []
        for index, (packed, past) in enumerate(zip(steps, pasts, strict=True)):
            step, count = packed.step, num_frames[index]
            shape = (step.num_past, height, width, step.weight_OITKK.shape[1])
            newest.append(torch.empty(shape, dtype=self.dtype))
            num_out, out_height, out_width = step.out_shape(count, height, width)
            chain.convs[index] = _Conv(
                *_addresses(packed, past, newest[-1]),
                *(count, step.num_past, height, width, step.weight_OITKK.shape[1]),
                *(num_out, out_height, out_width, step.out_channels),
                *(step.weight_OITKK.shape[2:4]),
                *(step.stride_t, step.stride, step.pad, step.up),
                index + 1 - step.residual if step.residual else -1,
            )
            height, width = out_height, out_width
        shape = (num_out, height, width, step.out_channels)
        output = torch.empty(shape, dtype=torch.float32 if as_float else self.dtype)
        chain.output = output.data_ptr()
        with self._one_at_a_time:
            if self._library.lipcast_run_chain(self._team, ctypes.byref(chain)):
                raise MemoryError("expected memory for a band of rows of the autoencoder, got none")
        return output, newest


def _addresses(packed: PackedStep, past: Tensor | None, newest: Tensor) -> list[int | None]:
    tensors = (packed.weight, packed.shortcut, packed.bias, packed.gamma, past, newest)
    assert past is None or (past.is_contiguous() and past.dtype == newest.dtype)
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _pack_kernel(weight_OITKK: Tensor) -> Tensor:
    """Tiles [shift][out tile][ky][kx][chunk][16 pairs of inputs][16 outputs][2].

    The inputs of one kernel position are (frame, channel), channels padded to 16. A tile row
    begins at a multiple of 32 values; an output frame whose first input lies in the middle of
    one uses the weights of shift 1, which have 16 zeros in front.
    """
    out_ch, in_ch, kernel_t, kernel, _ = weight_OITKK.shape
    padded_ch, padded_out = _round_up(in_ch, TILE), _round_up(out_ch, TILE)
    length = _round_up(kernel_t * padded_ch, CHUNK)
    by_frame = torch.zeros(padded_out, kernel, kernel, kernel_t, padded_ch)
    by_frame[:out_ch, ..., :in_ch] = weight_OITKK.float().permute(0, 3, 4, 2, 1)
    inputs = by_frame.flatten(3)
    shifts = [0] if padded_ch % CHUNK == 0 else [0, TILE]
    packed = torch.zeros(len(shifts), padded_out, kernel, kernel, length)
    for index, shift in enumerate(shifts):
        packed[index, ..., shift : shift + inputs.shape[-1]] = inputs
    tiles = packed.view(
        len(shifts), padded_out // TILE, TILE, kernel, kernel, length // CHUNK, TILE, 2
    )
    return tiles.permute(0, 1, 3, 4, 5, 6, 2, 7).to(torch.bfloat16).contiguous()


def _pack_matrix(weight_OI: Tensor) -> Tensor:
    return _pack_kernel(weight_OI[:, :, None, None, None])[0].contiguous()
