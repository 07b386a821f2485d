"""Options of GPUs, checked: how many there are, and what computes on each.

Input: plain values. Output: a frozen `GpuOptions`. Raises UsageError for what makes no sense.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from lipcast.errors import UsageError

KernelName = Literal["plain", "triton"]
"""What computes whatever is no matrix product: operators of PyTorch, or fused kernels in Triton."""
KernelChoice = KernelName | Literal["auto"]
KERNEL_CHOICES: tuple[KernelChoice, ...] = ("auto", *get_args(KernelName))
AttentionName = Literal["sdpa", "triton", "fa3", "cudnn", "xformers"]
"""What computes attention: PyTorch, the fused kernels, FlashAttention-3, cuDNN's frontend, xformers."""
AttentionChoice = AttentionName | Literal["auto"]
ATTENTION_CHOICES: tuple[AttentionChoice, ...] = ("auto", *get_args(AttentionName))
GraphChoice = Literal["auto", "off"]
GRAPH_CHOICES: tuple[GraphChoice, ...] = get_args(GraphChoice)


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How many GPUs make a video together, and how. The planner chooses what is left open.

    `gpus`: number of GPUs. `num_gpus_dit`: number that run the transformer, without one that only decodes.
    `ulysses_size`: number that split the tokens and heads of one denoising step. `enable_vae_parallel`: one
    GPU only decodes. `dit_fsdp`: each keeps a part of the weights, and layers are gathered when needed.
    `kernels`: "triton" passes over memory once where "plain" does up to ten times; "auto" is triton on
    every GPU where it works. `attention`: the back end of self-attention; "auto" is the one of PyTorch, or
    the fused kernel where that reads the KV cache in place.
    `cuda_graphs`: "auto" records ticks and launches them at once where one GPU holds everything; "off" never.
    """

    gpus: int | None = None
    num_gpus_dit: int | None = None
    ulysses_size: int | None = None
    enable_vae_parallel: bool = False
    dit_fsdp: bool = False
    kernels: KernelChoice = "auto"
    attention: AttentionChoice = "auto"
    cuda_graphs: GraphChoice = "auto"

    def __post_init__(self) -> None:
        for name in ("gpus", "num_gpus_dit", "ulysses_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected at least 1, got {value}")
        for name, choices in (
            ("kernels", KERNEL_CHOICES),
            ("attention", ATTENTION_CHOICES),
            ("cuda_graphs", GRAPH_CHOICES),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise UsageError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")

    @property
    def num_gpus(self) -> int:
        """Number of GPUs: what was asked for, or what the other options need together."""
        if self.gpus is not None:
            return self.gpus
        return (self.num_gpus_dit or self.ulysses_size or 1) + self.enable_vae_parallel


GPU_OPTION_NAMES = tuple(field.name for field in fields(GpuOptions))
