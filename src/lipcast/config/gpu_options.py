"""What the user says about several GPUs, checked.

Input: plain values. Output: a frozen `GpuOptions`. Raises UsageError for what makes no sense.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from lipcast.errors import UsageError


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How many GPUs make a video together, and how. What is left open is the planner's choice.

    `gpus`: all of them. `num_gpus_dit`: those that run the transformer, all but one that only decodes.
    `ulysses_size`: how many split the tokens and heads of one denoising step. `enable_vae_parallel`: one
    GPU only decodes. `dit_fsdp`: each keeps a part of the weights, and layers are gathered when needed.
    """

    gpus: int | None = None
    num_gpus_dit: int | None = None
    ulysses_size: int | None = None
    enable_vae_parallel: bool = False
    dit_fsdp: bool = False

    def __post_init__(self) -> None:
        for name in ("gpus", "num_gpus_dit", "ulysses_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected at least 1, got {value}")

    @property
    def num_gpus(self) -> int:
        """All GPUs: as many as were asked for, or as the other options need together."""
        if self.gpus is not None:
            return self.gpus
        return (self.num_gpus_dit or self.ulysses_size or 1) + self.enable_vae_parallel


GPU_OPTION_NAMES = tuple(field.name for field in fields(GpuOptions))
