"""The options as typed keyword arguments, for editors and type checkers.

Each `TypedDict` has the fields of the dataclass that it is named after; a test keeps them equal.
"""

from __future__ import annotations

from typing import TypedDict

from lipcast.config.generate_options import Crop, ReferenceEncoding, ScheduleName
from lipcast.config.gpu_options import AttentionChoice, GraphChoice, KernelChoice
from lipcast.config.precision import KVPrecision


class GenerateKeywords(TypedDict, total=False):
    """Fields of `GenerateOptions`."""

    size: str | None
    infer_frames: int | None
    num_clip: int | None
    sample_steps: int | None
    seed: int
    schedule: ScheduleName | None
    fold_last_step: bool
    reference_encoding: ReferenceEncoding
    swap_reference: bool
    cond_distance: int | None
    start_frame: int
    clean_audio: bool
    crop: Crop


class MemoryKeywords(TypedDict, total=False):
    """Fields of `MemoryOptions`."""

    vram: str | None
    ram: str | None
    offload_model: bool
    offload_kv_cache: bool
    kv_precision: KVPrecision | None
    fallback: str | None
    allow_degrade: bool


class GpuKeywords(TypedDict, total=False):
    """Fields of `GpuOptions`."""

    gpus: int | None
    num_gpus_dit: int | None
    ulysses_size: int | None
    enable_vae_parallel: bool
    dit_fsdp: bool
    kernels: KernelChoice
    attention: AttentionChoice
    cuda_graphs: GraphChoice


class MachineKeywords(MemoryKeywords, GpuKeywords, total=False):
    """Fields of `MemoryOptions` and of `GpuOptions`."""
