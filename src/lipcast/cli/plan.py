"""`lipcast plan`: what would go where, how fast it would be, and what else could be done.

Input: the given flags. Output: tables, or one JSON document. Pure arithmetic on configurations: no
GPU, no weights and no torch are needed, and the hardware need not be this machine's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lipcast.cli.command import Option, command, value_options
from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import MODEL, OPTIONS, options_from
from lipcast.cli.plan_view import layouts_text, plan_text
from lipcast.cli.request import generate_options, gpu_options, precision
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.units import parse_bytes
from lipcast.errors import UsageError
from lipcast.planning.fallbacks import alternatives, ladder
from lipcast.planning.hardware import Hardware, expected_kernels, gpu, gpu_described
from lipcast.planning.inputs import (
    PlannerInputs,
    allowed_fallbacks,
    layout_constraints,
    supposed_spec,
)
from lipcast.planning.layouts import LayoutPlan, plan_layouts, with_enough_steps
from lipcast.planning.plan import Budget, Plan, PlanRequest
from lipcast.planning.planner import make_plan
from lipcast.planning.table import (
    alternative_document,
    fallback_document,
    layout_document,
    plan_document,
)
from lipcast.weights.configs import PUBLISHED, read_configs

_SUPPOSED_RAM = "64GB"
_NEED_SEVERAL = ("num_gpus_dit", "ulysses_size", "enable_vae_parallel", "dit_fsdp")
_DEFAULTS: Mapping[str, str] = {
    "vram": "the card's",
    "ram": f"what is free; with --gpu, {_SUPPOSED_RAM}",
    "gpus": "1",
    "precision": "the fastest",
    "kv_precision": "bf16 if it fits",
    "schedule": "the fastest",
    "num_gpus_dit": "the fastest",
    "ulysses_size": "the fastest",
}
_SHARED = value_options(
    OPTIONS, *_DEFAULTS, "size", "infer_frames", "sample_steps", "fold_last_step", "fp8", "offload_model",
    "offload_kv_cache", "fallback", "allow_degrade", "kernels", "enable_vae_parallel", "dit_fsdp",
    "enable_online_decode", "json", "debug",
)  # fmt: skip


@command(
    "plan",
    (
        Option(
            "gpu", "Graphics card to plan for: rtx4090, rtx3060, h100 and so on.",
            metavar="NAME", show_default="the one in this machine",
        ),
        MODEL.with_default(f"{PUBLISHED}, the published model; its files are not needed"),
        *(
            option.with_default(_DEFAULTS[option.name]) if option.name in _DEFAULTS else option
            for option in _SHARED
        ),
    ),
    given_only=True,
    examples=(
        "lipcast plan --gpu rtx4090 --ram 32GB",
        'lipcast plan --vram 12GB --gpu h100 --size "384*256" --infer_frames 32',
        "lipcast plan --gpu rtx4090 --gpus 4 --ram 128GB",
    ),
)  # fmt: skip
def plan(console: Console, **flags: Any) -> None:
    """Show memory, placement and speed on any GPU.

    Nothing is loaded and no GPU is needed.
    """
    accepted_flags(flags)
    request, gpus = plan_request(flags), gpu_options(flags)
    if gpus.gpus is None or gpus.gpus == 1:
        _refuse_layout_flags(flags)
        _show_plan(console, make_plan(request), options_from(MemoryOptions, flags))
    else:
        constraints = layout_constraints(gpus)
        request = with_enough_steps(request, gpus.gpus, constraints)
        _show_layouts(console, request, plan_layouts(request, gpus.gpus, constraints))


def _show_plan(console: Console, chosen: Plan, memory: MemoryOptions) -> None:
    others, below = alternatives(chosen), ladder(chosen, allowed_fallbacks(memory, chosen.request))
    if console.as_json:
        print_json({
            "plan": plan_document(chosen),
            "alternatives": [alternative_document(other) for other in others],
            "ladder": [fallback_document(fallback) for fallback in below],
        })  # fmt: skip
    else:
        sys.stdout.write(plan_text(chosen, others, below))


def _show_layouts(console: Console, request: PlanRequest, found: tuple[LayoutPlan, ...]) -> None:
    if console.as_json:
        print_json({"layouts": [layout_document(layout) for layout in found]})
    else:
        sys.stdout.write(layouts_text(request, found))


def plan_request(flags: Mapping[str, Any]) -> PlanRequest:
    """Return what the planner is asked. Raises UsageError for options that make no sense."""
    models, options = read_configs(flags.get("model", PUBLISHED)), generate_options(flags)
    hardware = expected_kernels(_hardware(flags.get("gpu")), gpu_options(flags).kernels)
    memory = options_from(MemoryOptions, flags)
    budget = _budget(memory, hardware, is_supposed="gpu" in flags)
    inputs = PlannerInputs(hardware, budget, memory, models, precision(flags))
    return inputs.request(supposed_spec(options, models).geometry, options)


def _refuse_layout_flags(flags: Mapping[str, Any]) -> None:
    """Refuse on one GPU what only several can do."""
    for name in _NEED_SEVERAL:
        if flags.get(name) not in {None, False, 1}:
            raise UsageError(f"--{name}: needs --gpus with the number of GPUs beside it")


def _budget(memory: MemoryOptions, hardware: Hardware, *, is_supposed: bool) -> Budget:
    """Return the budget; without --ram that of the machine, or a usual one for a supposed card."""
    vram_bytes = memory.budget_bytes("vram", hardware.memory_bytes)
    if memory.ram is not None:
        return Budget(vram_bytes, parse_bytes(memory.ram))
    return Budget(vram_bytes, parse_bytes(_SUPPOSED_RAM) if is_supposed else _free_ram_bytes())


def this_device_context() -> tuple[Hardware, Budget]:
    """Return the first card and all memory of this machine; raises UsageError without a known card."""
    hardware = _hardware(None)
    return hardware, _budget(MemoryOptions(), hardware, is_supposed=False)


def _free_ram_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _hardware(name: str | None) -> Hardware:
    """Return the card of that name, or the first one in this machine."""
    if name is not None:
        return gpu(name)
    found = _driver_says()
    if not found:
        raise UsageError("no GPU found in this machine; name one with --gpu, such as --gpu rtx4090")
    return read_driver(found)


def _driver_says() -> str:
    """Return what nvidia-smi lists, one card a line; empty where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def read_driver(listing: str) -> Hardware:
    """Return the card of "NVIDIA GeForce RTX 4090, 24564", one line per card; memory in MiB."""
    name, _, memory = listing.splitlines()[0].rpartition(",")
    if not memory.strip().isdigit():
        raise UsageError(f'nvidia-smi lists "{listing}", which is no "name, MiB"; use --gpu')
    described = gpu_described(name.strip(), int(memory) * 2**20)
    return replace(described, label=name.strip())
