"""Which kernels and which attention a model computes with, decided once when it is loaded.

Input: the user's choices, a device, the model's sizes. Output: the kernels, and in words why these. Triton
is tried out on the device: it compiles for it, and needs a C compiler to be launched. So is a back end of
attention that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from lipcast.config.gpu_options import AttentionChoice, KernelChoice
from lipcast.config.models import DiTConfig
from lipcast.errors import UsageError
from lipcast.models.attention import prefers_cudnn
from lipcast.models.attention_backends import BACKENDS, SDPA, AttentionBackend, gives_log_sum_exp
from lipcast.models.kernels.plain import Kernels
from lipcast.models.vae_kernels import ConvKernels
from lipcast.planning.hardware import Capability

_SMALLEST_HEAD = 16
"""Tensor cores multiply no narrower matrices."""


@dataclass(frozen=True, slots=True)
class ChosenKernels:
    """The kernels, and why these."""

    kernels: Kernels
    reason: str


def choose_kernels(
    choice: KernelChoice,
    device: torch.device,
    config: DiTConfig,
    *,
    attention: AttentionChoice = "auto",
    dtype: torch.dtype = torch.bfloat16,
) -> ChosenKernels:
    """Return the kernels for a model that computes in `dtype` on a device, attention included.

    Raises UsageError for kernels or an attention that is asked for and cannot run.
    """
    reason = _plain_reason(choice, device, config)
    backend = chosen_attention(attention, device, config, dtype=dtype, is_fused=not reason)
    if reason:
        return ChosenKernels(Kernels(backend), reason)
    from lipcast.models.kernels.fused import FusedKernels

    in_place = True if attention == "triton" else None if attention == "auto" else False
    fused = FusedKernels(_capability(device), in_place=in_place, attention=backend)
    reason = "asked for" if choice == "triton" else "Triton compiles for this GPU"
    return ChosenKernels(fused, reason)


def _plain_reason(choice: KernelChoice, device: torch.device, config: DiTConfig) -> str:
    """Return why PyTorch's own operators compute; empty where fused kernels do."""
    if choice == "plain":
        return "asked for"
    if choice == "auto" and device.type != "cuda":
        return "no GPU"
    obstacle = _unfit(config) or triton_obstacle(device)
    if obstacle and choice == "triton":
        raise UsageError(f"kernels: triton cannot be used, {obstacle}; choose auto or plain")
    return obstacle


def chosen_attention(
    choice: AttentionChoice,
    device: torch.device,
    config: DiTConfig,
    *,
    dtype: torch.dtype,
    is_fused: bool,
) -> AttentionBackend | None:
    """Return the back end of self-attention that gives a log-sum-exp; None: PyTorch's, or the kernels' own.

    Raises UsageError for one that is asked for and cannot run.
    """
    capability = _capability(device)
    if choice == "auto" or choice == "sdpa":  # noqa: PLR1714
        return SDPA if gives_log_sum_exp(capability, dtype, config.head_dim) else None
    if choice == "triton":
        obstacle = "" if is_fused else "it is one of the fused kernels, which are not used here"
        backend = None
    else:
        backend = BACKENDS[choice]
        obstacle = backend.obstacle(device, capability, dtype=dtype, head_dim=config.head_dim)
    if obstacle:
        raise UsageError(f"attention: {choice} cannot be used, {obstacle}; choose auto")
    return backend


def attention_outlook(device: torch.device, config: DiTConfig, kernels: Kernels) -> tuple[str, str]:
    """Return what `auto` attends with on a GPU and why, and what speaks against each of the others."""
    capability = _capability(device)
    others = [
        f"{name}: {obstacle or f'works, --attention {name} takes it'}"
        for name, backend in BACKENDS.items()
        for obstacle in [
            backend.obstacle(device, capability, dtype=torch.bfloat16, head_dim=config.head_dim)
        ]
    ]
    if kernels.name == "triton" and not prefers_cudnn(capability):
        return "triton: reads the KV cache in place", "; ".join(others)
    kind = "cuDNN, which is fastest on this card" if prefers_cudnn(capability) else "flash"
    return f"sdpa: PyTorch's own ({kind})", "; ".join(others)


def _capability(device: torch.device) -> Capability | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


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
