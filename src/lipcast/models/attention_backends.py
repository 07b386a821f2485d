"""The libraries that can compute self-attention, and which of them a model uses.

`sdpa` is PyTorch's own and the default: no other has been measured to be faster. The others are extras,
imported when one is asked for. Every back end takes q, k, v [B, T, N, d] without a mask, scales by 1/sqrt(d),
and returns o [B, T, N, d] and the natural log-sum-exp [B, N, T]. `obstacle` says in words why one cannot be
used; a short trial against `exact_part` is part of it, since a wheel may belong to another PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lipcast.config.gpu_options import AttentionName
from lipcast.models.attention import Part, cudnn_part, prefers_cudnn
from lipcast.planning.hardware import Capability

Compute = Callable[[Any, Tensor, Tensor, Tensor], Part]
"""(module, q, k, v) to (o, log-sum-exp)."""
_TRIAL_TOKENS = (48, 80)
"""Queries and keys of the trial."""
_TRIAL_ERROR = 0.02
"""Relative error that rounding to bf16 explains."""


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """A library, the cards and numbers that it is made for, and how it is called."""

    name: AttentionName
    package: str
    """What is installed: the extra of the same name as the back end brings it."""
    module: str
    first: Capability
    last: Capability
    """Compute capabilities from and to."""
    dtypes: tuple[torch.dtype, ...]
    largest_head: int
    compute: Compute

    def attend_part(self, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
        """Return the attention to these keys, and its log-sum-exp."""
        o_BTNd, lse_BNT = self.compute(import_module(self.module), q_BTNd, k_BTNd, v_BTNd)
        return o_BTNd.to(q_BTNd.dtype), lse_BNT.reshape(lse_BNT.shape[:3])

    def unfit(self, capability: Capability | None, dtype: torch.dtype, head_dim: int) -> str:
        """Return why it is not made for such numbers on such a card; empty where it is."""
        if capability is None:
            return "it needs a CUDA device"
        if not self.first <= capability <= self.last:
            is_one = self.first[0] == self.last[0]
            cards = f"{self.first[0]}.x" if is_one else f"{'.'.join(map(str, self.first))} or newer"
            found = ".".join(map(str, capability))
            return f"it is made for compute capability {cards}, this GPU has {found}"
        if dtype not in self.dtypes:
            return f"it computes in {_names(self.dtypes)}, the model in {_names((dtype,))}"
        if head_dim % 8 or head_dim > self.largest_head:
            return (
                f"it takes heads of a multiple of 8 channels up to {self.largest_head}, "
                f"the model's have {head_dim}"
            )
        return ""

    def missing(self) -> str:
        """Return how to install it; empty where it is installed."""
        top = self.module.partition(".")[0]
        if find_spec(top) is not None:
            return ""
        return f"{self.package} is not installed: pip install 'lipcast[{self.name}]'"

    def obstacle(
        self,
        device: torch.device,
        capability: Capability | None,
        *,
        dtype: torch.dtype,
        head_dim: int,
    ) -> str:
        """Return why it cannot be used on a device; empty where it can, tried out."""
        found = self.unfit(capability, dtype, head_dim) or self.missing()
        return found or self._trial(device, dtype, head_dim)

    def _trial(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        num_queries, num_keys = _TRIAL_TOKENS
        q, k, v = (
            (torch.arange(2.0 * n * head_dim) * pace)
            .sin()
            .view(1, n, 2, head_dim)
            .to(device, dtype)
            for n, pace in ((num_queries, 1.7), (num_keys, 2.3), (num_keys, 0.9))
        )
        try:
            found = self.attend_part(q, k, v)
            errors = [_error(*pair) for pair in zip(found, exact_part(q, k, v), strict=True)]
        except Exception as error:  # libraries, drivers and compilers raise anything
            first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
            return f"{self.package} does not run here: {first_line}"
        if not max(errors) <= _TRIAL_ERROR:
            return f"{self.package} computes something else here"
        return ""


def exact_part(q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
    """Return the same in float32 by its definition: the plain twin of every back end."""
    q, k, v = (x.float().transpose(1, 2) for x in (q_BTNd, k_BTNd, v_BTNd))
    scores_BNTS = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    o_BTNd = (scores_BNTS.softmax(-1) @ v).transpose(1, 2).to(q_BTNd.dtype)
    return o_BTNd, scores_BNTS.logsumexp(-1)


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _sdpa(torch_module: Any, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
    del torch_module
    return cudnn_part(q_BTNd, k_BTNd, v_BTNd)


def _fa3(fa3: Any, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
    """Call `fa3_fwd_interface.flash_attn_func`: [B, T, N, d]; log-sum-exp [B, N, T] when asked for."""
    o_BTNd, lse_BNT = fa3.flash_attn_func(q_BTNd, k_BTNd, v_BTNd, return_attn_probs=True)
    return o_BTNd, lse_BNT


def _cudnn(cudnn: Any, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
    """Call `cudnn.sdpa_torch`: [B, N, T, d] of any strides; log-sum-exp [B, N, T, 1]."""
    heads = (x.transpose(1, 2) for x in (q_BTNd, k_BTNd, v_BTNd))
    o_BNTd, lse_BNT1 = cudnn.sdpa_torch(*heads, return_lse=True)
    return o_BNTd.transpose(1, 2), lse_BNT1.squeeze(-1)


def _xformers(fmha: Any, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor) -> Part:
    """Call `memory_efficient_attention_partial`: [B, T, N, d]; log-sum-exp [B, N, T]."""
    o_BTNd, lse_BNT = fmha.memory_efficient_attention_partial(q_BTNd, k_BTNd, v_BTNd)
    return o_BTNd, lse_BNT


_HALF = (torch.bfloat16, torch.float16)
SDPA = AttentionBackend("sdpa", "torch", "torch", (8, 0), (99, 0), _HALF, 128, _sdpa)
BACKENDS: Mapping[AttentionName, AttentionBackend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            # The wheel is built for Hopper's tensor cores, without fp16.
            AttentionBackend(
                "fa3", "fa3-fwd", "fa3_fwd_interface", (9, 0), (9, 9), _HALF[:1], 256, _fa3
            ),
            AttentionBackend(
                "cudnn", "nvidia-cudnn-frontend", "cudnn", (8, 0), (99, 0), _HALF, 128, _cudnn
            ),
            AttentionBackend(
                "xformers", "xformers", "xformers.ops.fmha", (8, 0), (99, 0), _HALF, 256, _xformers
            ),
        )
    }
)
"""What is not part of PyTorch or of Lipcast."""


def gives_log_sum_exp(capability: Capability | None, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether PyTorch's own attention is cuDNN's here, which gives it at no cost."""
    return prefers_cudnn(capability) and not SDPA.unfit(capability, dtype, head_dim)
