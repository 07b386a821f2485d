"""Load the networks of a checkpoint folder, under a memory plan where there is one.

Input: `LoadSettings`, plain data that another process can be given as well. Output: the networks, and the
manager of their memory where there is a plan. One device may load some of the networks only, and do a share
of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lipcast.config.gpu_options import AttentionChoice, GraphChoice, KernelChoice
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import DiTConfig
from lipcast.config.precision import PRECISIONS, Precision
from lipcast.engine.planner_inputs import (
    default_geometry,
    measure_planner_inputs,
    open_device_context,
)
from lipcast.env import cache_dir, logger
from lipcast.errors import UsageError
from lipcast.memory.device import prepare_allocator, with_index
from lipcast.memory.manager import MemoryManager
from lipcast.models.dit import DiT, apply_kernels
from lipcast.models.kernels.choice import choose_conv_kernels, choose_kernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.models.vae_kernels import best_kernels, processor_flags
from lipcast.planning.hardware import FIRST_BF16
from lipcast.planning.inputs import needs_bf16
from lipcast.planning.plan import EncoderPlacement, Plan, WorkShare
from lipcast.weights.bundle import NETWORKS, ModelBundle, NetworkName, load_bundle
from lipcast.weights.lora import LoraSpec
from lipcast.weights.prompts import PromptCache
from lipcast.weights.source import TensorSource
from lipcast.weights.tiny_decoder import load_tiny_decoder

_log = logger("engine.loading")
_BF16_INSTRUCTIONS = "amx_bf16"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_QUANTISED: tuple[Precision, ...] = ("fp8", "int8", "int4", "nvfp4")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Networks to load, and how; `precision` is the user's choice, checked, or None."""

    directory: Path
    device: torch.device
    dtype: torch.dtype
    precision: Precision | None = None
    loras: tuple[str | LoraSpec, ...] = ()
    decoder: Path | None = None
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    kernels: KernelChoice = "auto"
    attention: AttentionChoice = "auto"
    graphs: GraphChoice = "auto"

    @property
    def is_planned(self) -> bool:
        """Memory is planned on every GPU, and on a CPU where the user bounds it."""
        return self.device.type == "cuda" or self.memory.asks_for_a_plan

    @property
    def quantised(self) -> Precision | None:
        """Format that weights are quantised to while they are read; None keeps them."""
        return next((name for name in _QUANTISED if name == self.precision), None)


def load_networks(
    settings: LoadSettings,
    *,
    networks: Collection[NetworkName] = NETWORKS,
    share: WorkShare | None = None,
    load_dit: Callable[[DiT, TensorSource], None] | None = None,
) -> tuple[ModelBundle, MemoryManager | None]:
    """Load the networks named; build the others without weights.

    `share`: the part of the work that this device does. `load_dit` fills the transformer in place of the
    memory manager. The speech encoder goes where the plan puts it.
    Raises MemoryBudgetError where nothing fits, CheckpointError for missing or broken files.
    """
    manager, weights = None, settings.quantised
    speech_device = settings.device
    if settings.device.type == "cuda":
        prepare_allocator()
        # Once for the process: pages are pinned, links measured and graphs kept for the current device.
        torch.cuda.set_device(settings.device)
    if settings.is_planned and "dit" in networks and load_dit is None:
        manager, plan = _planned(settings, share)
        load_dit = partial(manager.load, plan=plan, dtype=settings.dtype)
        weights = next((name for name in _QUANTISED if name == plan.config.precision), None)
        speech_device = device_of(plan.speech_encoder, settings.device)
    bundle = load_bundle(
        settings.directory,
        device=settings.device,
        dtype=settings.dtype,
        precision=weights,
        loras=settings.loras,
        prompts=PromptCache(cache_dir() / "prompts"),
        load_dit=load_dit,
        networks=networks,
        speech_device=speech_device,
    )
    if "dit" in networks:
        apply_kernels(bundle.dit, _kernels(settings, bundle.dit.config))
    if "vae" in networks:
        _prepare_decoder(bundle, settings)
    return bundle, manager


def _kernels(settings: LoadSettings, config: DiTConfig) -> Kernels:
    chosen = choose_kernels(
        settings.kernels,
        settings.device,
        config,
        attention=settings.attention,
        dtype=settings.dtype,
    )
    _log.info("kernels: %s (%s)", chosen.kernels.name, chosen.reason)
    return chosen.kernels


def _planned(settings: LoadSettings, share: WorkShare | None) -> tuple[MemoryManager, Plan]:
    """Return the manager of the model's memory, and the plan that it is loaded under."""
    options, device, dtype = settings.memory, settings.device, settings.dtype
    inputs = measure_planner_inputs(
        settings.directory,
        device,
        options,
        precision=settings.precision,
        dtype=dtype,
        share=share,
        kernels=settings.kernels,
        attention=settings.attention,
        graphs=settings.graphs,
    )
    manager = MemoryManager(open_device_context(device, inputs), inputs)
    return manager, manager.first_plan(default_geometry(inputs.models))


def _prepare_decoder(bundle: ModelBundle, settings: LoadSettings) -> None:
    device, dtype = settings.device, settings.dtype
    kernels = choose_conv_kernels(settings.kernels, device, dtype)
    if device.type == "cpu" and dtype == torch.bfloat16:
        kernels = best_kernels()
    if kernels is not None:
        bundle.vae = to_channels_last(bundle.vae, kernels)
    if settings.decoder is not None:
        decoder = load_tiny_decoder(settings.decoder, device=device, dtype=dtype)
        if device.type == "cuda":
            # As tensor cores read. PyTorch's stubs do not know this argument.
            decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        bundle.tiny_decoder = decoder


def device_of(placement: EncoderPlacement, device: torch.device) -> torch.device:
    """Return where an encoder runs that is planned on the device, in host memory or on disk."""
    return device if placement == "device" else torch.device("cpu")


def default_device() -> torch.device:
    """Return the first GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def read_device(name: str | None) -> torch.device:
    """Return a device by name, a GPU with its index; by default the first GPU, else the CPU.

    Raises UsageError.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f'device: expected "cpu" or "cuda[:N]", got {name!r}') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: {name} was asked for, but torch sees no CUDA device; use cpu")
    return with_index(device)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_BF16
    return _BF16_INSTRUCTIONS in processor_flags()


def read_precision(
    precision: str | None, device: torch.device
) -> tuple[torch.dtype, Precision | None]:
    """Return the dtype that is computed in, and the precision that was asked for. Raises UsageError."""
    dtype = torch.bfloat16 if _has_bf16(device) else torch.float32
    is_old = device.type == "cuda" and dtype == torch.float32
    if precision is None:
        if is_old:
            _log.warning("%s has no bf16: everything is computed in fp32, which is slow", device)
        return dtype, None
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UsageError(f"precision: expected one of {known}, got {precision!r}")
    if is_old and precision != "fp32":
        raise UsageError(needs_bf16(precision, str(device)))
    return _DTYPES.get(precision, dtype), next(p for p in PRECISIONS if p == precision)
