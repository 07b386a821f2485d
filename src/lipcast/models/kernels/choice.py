"""Which kernels a model computes with, decided once when it is loaded.

Input: the user's choice, a device, the model's sizes. Output: the kernels, and in words why these. Triton
is tried out on the device: it compiles for it, and needs a C compiler to be launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from lipcast.config.gpu_options import KernelChoice
from lipcast.config.models import DiTConfig
from lipcast.errors import UsageError
from lipcast.models.kernels.plain import Kernels
from lipcast.models.vae_kernels import ConvKernels

_SMALLEST_HEAD = 16
"""Tensor cores multiply no narrower matrices."""


@dataclass(frozen=True, slots=True)
class ChosenKernels:
    """The kernels, and why these."""

    kernels: Kernels
    reason: str


def choose_kernels(choice: KernelChoice, device: torch.device, config: DiTConfig) -> ChosenKernels:
    """Return the kernels for a model on a device. Raises UsageError for "triton" where it cannot run."""
    if choice == "plain":
        return ChosenKernels(Kernels(), "asked for")
    if choice == "auto" and device.type != "cuda":
        return ChosenKernels(Kernels(), "no GPU")
    obstacle = _unfit(config) or triton_obstacle(device)
    if not obstacle:
        from lipcast.models.kernels.fused import FusedKernels

        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        reason = "asked for" if choice == "triton" else "Triton compiles for this GPU"
        return ChosenKernels(FusedKernels(capability), reason)
    if choice == "triton":
        raise UsageError(f"kernels: triton cannot be used, {obstacle}; choose auto or plain")
    return ChosenKernels(Kernels(), obstacle)


def choose_conv_kernels(
    choice: KernelChoice, device: torch.device, dtype: torch.dtype
) -> ConvKernels | None:
    """Return the fused kernels of the autoencoder on a GPU; None: it computes as it is.

    Raises UsageError for "triton" where it cannot run. In float32 the autoencoder is not fused.
    """
    if choice == "plain" or device.type != "cuda" or dtype.itemsize != 2:
        return None
    from lipcast.models.kernels import vae

    obstacle = triton_obstacle(device) or vae.obstacle(device)
    if not obstacle:
        return vae.FusedConvKernels(dtype)
    if choice == "triton":
        raise UsageError(f"kernels: triton cannot be used, {obstacle}; choose auto or plain")
    return None


def _unfit(config: DiTConfig) -> str:
    size = config.head_dim
    if size >= _SMALLEST_HEAD and size & (size - 1) == 0:
        return ""
    return f"heads of size {size}: expected a power of two, at least {_SMALLEST_HEAD}"


def triton_obstacle(device: torch.device) -> str:
    """Return why the fused kernels do not run on a device; empty where they do. A GPU is tried once."""
    return _obstacle_of_gpu(device) if device.type == "cuda" else _obstacle(device)


@cache
def _obstacle_of_gpu(device: torch.device) -> str:
    return _obstacle(device)


def _obstacle(device: torch.device) -> str:
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return "Triton needs a CUDA device"
    from lipcast.models.kernels import operators

    x = torch.ones(1, 64, device=device)
    try:
        found = operators.rms_norm(x, x[0], 0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # compilers and drivers raise anything
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        return f"Triton does not compile or run here: {first_line}"
    return "" if torch.equal(found, x) else "Triton computes something else here"
