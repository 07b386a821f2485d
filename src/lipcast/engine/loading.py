"""From a checkpoint's folder to networks that are ready, with their memory planned where it is.

Input: `LoadSettings`, plain data that another process can be given as well. Output: the networks, and the
steward of their memory where there is a plan. One device may load some of the networks only, and do a share
of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lipcast.engine.planner_inputs import (
    default_geometry,
    measure_planner_inputs,
    open_device_context,
)
from lipcast.env import cache_dir, logger
from lipcast.errors import UsageError
from lipcast.memory.manager import MemoryManager
from lipcast.models.dit import DiT
from lipcast.models.vae_cpu import best_kernels, prepare_for_cpu
from lipcast.models.vae_native_build import processor_flags
from lipcast.planning import sizes
from lipcast.planning.memory_options import MemoryOptions
from lipcast.planning.plan import Share
from lipcast.weights.bundle import NETWORKS, ModelBundle, Network, load_bundle
from lipcast.weights.lora import LoraSpec
from lipcast.weights.prompts import PromptCache
from lipcast.weights.schemes import Precision
from lipcast.weights.source import TensorSource
from lipcast.weights.tiny_decoder import load_tiny_decoder

_log = logger("engine.loading")
_BF16_INSTRUCTIONS = "amx_bf16"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_QUANTISED: tuple[Precision, ...] = ("fp8", "int8", "int4")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What to load and how; `precision` is the user's word, checked, or None."""

    directory: Path
    device: torch.device
    dtype: torch.dtype
    precision: sizes.Precision | None = None
    loras: tuple[str | LoraSpec, ...] = ()
    decoder: Path | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    @property
    def is_planned(self) -> bool:
        """Memory is planned on every GPU, and on a CPU where the user bounds it."""
        return self.device.type == "cuda" or self.memory.asks_for_a_plan

    @property
    def quantised(self) -> Precision | None:
        """What weights are quantised to while they are read; None: nothing."""
        return next((name for name in _QUANTISED if name == self.precision), None)


def load_networks(
    settings: LoadSettings,
    *,
    networks: Collection[Network] = NETWORKS,
    share: Share | None = None,
    load_dit: Callable[[DiT, TensorSource], None] | None = None,
) -> tuple[ModelBundle, MemoryManager | None]:
    """Load some of the networks; of the others there are shapes only.

    `share`: what this device does of the work. `load_dit` fills the transformer in place of the steward.
    Raises MemoryBudgetError where nothing fits, CheckpointError for missing or broken files.
    """
    memory_manager, weights = None, settings.quantised
    if settings.is_planned and "dit" in networks and load_dit is None:
        memory_manager, load_dit, weights = _planned(settings, share)
    bundle = load_bundle(
        settings.directory,
        device=settings.device,
        dtype=settings.dtype,
        precision=weights,
        loras=settings.loras,
        prompts=PromptCache(cache_dir() / "prompts"),
        load_dit=load_dit,
        networks=networks,
    )
    if "vae" in networks:
        _prepare_decoder(bundle, settings)
    return bundle, memory_manager


def _planned(
    settings: LoadSettings, share: Share | None
) -> tuple[MemoryManager, Callable[[DiT, TensorSource], None], Precision | None]:
    """The steward, how it loads the transformer, and what weights are quantised to."""
    options, device, dtype = settings.memory, settings.device, settings.dtype
    terms = measure_planner_inputs(
        settings.directory, device, options, precision=settings.precision, dtype=dtype, share=share
    )
    memory_manager = MemoryManager(open_device_context(device, options), terms)
    plan = memory_manager.first_plan(default_geometry(terms.models))
    precision = plan.config.precision
    weights = next((name for name in _QUANTISED if name == precision), None)
    return memory_manager, partial(memory_manager.load, plan=plan, dtype=dtype), weights


def _prepare_decoder(bundle: ModelBundle, settings: LoadSettings) -> None:
    device, dtype = settings.device, settings.dtype
    if device.type == "cpu" and dtype == torch.bfloat16:
        kernels, description = best_kernels(cache_dir(), num_threads=torch.get_num_threads())
        _log.info("video autoencoder on the CPU: %s", description)
        bundle.vae = prepare_for_cpu(bundle.vae, kernels)
    if settings.decoder is not None:
        bundle.tiny_decoder = load_tiny_decoder(settings.decoder, device=device, dtype=dtype)


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_device(name: str | None) -> torch.device:
    """A device by name, by default the first GPU, else the CPU. Raises UsageError."""
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f'device: expected "cpu" or "cuda[:N]", got {name!r}') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: {name} was asked for, but torch sees no CUDA device; use cpu")
    return device


def read_precision(
    precision: str | None, device: torch.device
) -> tuple[torch.dtype, sizes.Precision | None]:
    """What is computed in, and the precision that was asked for. Raises UsageError."""
    has_bf16 = device.type == "cuda" or _BF16_INSTRUCTIONS in processor_flags()
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    if precision is None:
        return dtype, None
    if precision not in sizes.PRECISIONS:
        known = ", ".join(sizes.PRECISIONS)
        raise UsageError(f"precision: expected one of {known}, got {precision!r}")
    return _DTYPES.get(precision, dtype), next(p for p in sizes.PRECISIONS if p == precision)
