"""The options as typed keyword arguments, for editors and type checkers, and the checked options of them.

Each `TypedDict` has the fields of the dataclass that it is named after; a test keeps them equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from lipcast.config.generate_options import (
    EARLIER_NAMES,
    OPTION_NAMES,
    Crop,
    GenerateOptions,
    ReferenceEncoding,
    ScheduleName,
)
from lipcast.config.gpu_options import (
    GPU_OPTION_NAMES,
    AttentionChoice,
    GpuOptions,
    GraphChoice,
    KernelChoice,
)
from lipcast.config.memory_options import MEMORY_OPTION_NAMES, MemoryOptions
from lipcast.config.precision import KVPrecision
from lipcast.errors import UsageError


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
    audio_scale: float
    crop: Crop
    pose: bool


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


def make_options(keywords: Mapping[str, Any]) -> GenerateOptions:
    """Return checked options from keyword arguments; raises UsageError for an unknown name."""
    keywords = {EARLIER_NAMES.get(name, name): value for name, value in keywords.items()}
    _check_names(keywords, OPTION_NAMES)
    return GenerateOptions(**keywords)


def generate_options(
    options: GenerateOptions | None, keywords: GenerateKeywords
) -> GenerateOptions:
    """Return options that were given as an object or as keywords; raises UsageError for both."""
    if options is None:
        return make_options(keywords)
    if keywords:
        raise UsageError("give options either as GenerateOptions or as keywords, not as both")
    return options


def machine_options(
    memory: MemoryOptions | None, gpus: GpuOptions | None, keywords: MachineKeywords
) -> tuple[MemoryOptions, GpuOptions]:
    """Return the options of the machine, given as objects or as keywords; raises UsageError for both."""
    _check_names(keywords, (*MEMORY_OPTION_NAMES, *GPU_OPTION_NAMES))
    given = cast("dict[str, Any]", keywords)
    of_memory = {name: given[name] for name in MEMORY_OPTION_NAMES if name in given}
    of_gpus = {name: given[name] for name in GPU_OPTION_NAMES if name in given}
    if (memory and of_memory) or (gpus and of_gpus):
        raise UsageError("give options either as objects or as keywords, not as both")
    return memory or MemoryOptions(**of_memory), gpus or GpuOptions(**of_gpus)


def _check_names(keywords: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in keywords:
        if name not in known:
            raise UsageError(f"unknown option {name!r}; expected one of: {', '.join(known)}")
