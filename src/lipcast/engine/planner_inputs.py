"""What plans are made from, measured before anything is loaded.

Input: a checkpoint's folder, a device, the user's options. Output: `PlannerInputs` (rates, budget,
configurations, precision) and the `DeviceContext` that memory is taken from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import psutil
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import AttentionChoice, GraphChoice, KernelChoice
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models
from lipcast.config.precision import Precision
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.probe import describe_gpu
from lipcast.models.kernels.choice import choose_kernels
from lipcast.planning.hardware import CONTEXT_BYTES, CPU, Hardware, expected_kernels
from lipcast.planning.inputs import PlannerInputs, supposed_spec
from lipcast.planning.plan import Budget, WorkShare
from lipcast.planning.plan import total as total_bytes
from lipcast.planning.sizes import linear_sizes
from lipcast.planning.workload import HOST_RESERVE_BYTES, reserve_parts
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.configs import read_configs
from lipcast.weights.files import open_tensors
from lipcast.weights.quant_linear import quantised_layers


def measure_planner_inputs(
    directory: Path,
    device: torch.device,
    options: MemoryOptions,
    *,
    precision: Precision | None,
    dtype: torch.dtype,
    share: WorkShare | None = None,
    hardware: Hardware | None = None,
    kernels: KernelChoice = "auto",
    attention: AttentionChoice = "auto",
    graphs: GraphChoice = "auto",
) -> PlannerInputs:
    """Return what the plans of a model on a device are made from.

    `precision` is the user's; None leaves it to the checkpoint, then to the planner.

    `hardware`: of a device that is not to be touched from here, and whose memory is taken as free.
    Raises CheckpointError for a folder that is no checkpoint.
    """
    if precision is None:
        precision = _stored_precision(directory)
    if precision is None and device.type == "cpu":
        precision = "fp32" if dtype == torch.float32 else "bf16"
    models = read_configs(directory)
    if hardware is None:
        is_gpu = device.type == "cuda"
        layer_sizes = linear_sizes(models.dit)
        hardware = describe_gpu(device, layer_sizes, precision=precision) if is_gpu else CPU
        chosen = choose_kernels(kernels, device, models.dit)
        hardware = replace(hardware, kernels=chosen.kernels.name, attention=attention)
        free_bytes = _free_bytes(device, hardware)
    else:
        hardware = expected_kernels(hardware, kernels, attention=attention)
        free_bytes = hardware.memory_bytes
    budget = Budget(
        options.budget_bytes("vram", free_bytes),
        options.budget_bytes("ram", psutil.virtual_memory().available),
    )
    return PlannerInputs(
        hardware, budget, options, models, precision, share or WorkShare(), graphs=graphs
    )


def open_device_context(device: torch.device, inputs: PlannerInputs) -> DeviceContext:
    """Return the memory of this machine, bounded by the budget less what is taken outside the arenas.

    On a GPU, a budget of the user's bounds everything that torch takes.
    """
    options, budget = inputs.options, inputs.budget
    if device.type == "cuda" and options.vram is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        wanted = options.budget_bytes("vram", total) - CONTEXT_BYTES
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, wanted / total)), device)
    return DeviceContext.of(
        device,
        vram_bytes=max(0, budget.vram_bytes - total_bytes(reserve_parts(inputs.hardware))),
        ram_bytes=max(0, budget.ram_bytes - HOST_RESERVE_BYTES),
    )


def default_geometry(models: Models) -> Geometry:
    """Return the geometry that weights are placed for first: default options and an upright portrait."""
    return supposed_spec(GenerateOptions(), models).geometry


def _stored_precision(directory: Path) -> Precision | None:
    """Return the precision of a quantised checkpoint; None for one that is not."""
    files = find_checkpoint(directory, need=("dit",))
    assert files.dit is not None
    found = (scheme.precision for _, scheme in quantised_layers(open_tensors(files.dit)))
    return cast("Precision | None", next(found, None))


def _free_bytes(device: torch.device, hardware: Hardware) -> int:
    return free_bytes(device) if device.type == "cuda" else hardware.memory_bytes


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, with what the context takes that this process has on it."""
    free, total = torch.cuda.mem_get_info(device)
    return min(total, free + CONTEXT_BYTES)
