"""`lipcast plan`: what would go where, how fast it would be, and what else could be done.

Input: the given flags. Output: tables, or one JSON document. Pure arithmetic on configurations: no
GPU, no weights and no torch are needed, and the hardware need not be this machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from lipcast.cli.command import Option, command, value_options
from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import MODEL, OPTIONS, options_from
from lipcast.cli.plan_view import layouts_text, plan_text
from lipcast.cli.request import generate_options, gpu_options, precision
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.units import parse_bytes
from lipcast.errors import UsageError
from lipcast.lab.driver import DriverCard, listed_cards
from lipcast.planning.fallbacks import alternatives, ladder
from lipcast.planning.hardware import Hardware, expected_kernels, generic_gpu, gpu, gpu_described
from lipcast.planning.inputs import (
    PlannerInputs,
    allowed_fallbacks,
    layout_constraints,
    supposed_spec,
)
from lipcast.planning.layouts import LayoutPlan, layouts, plan_layouts, with_enough_steps
from lipcast.planning.plan import Budget, Plan, PlanRequest
from lipcast.planning.planner import make_plan
from lipcast.planning.table import (
    alternative_document,
    fallback_document,
    layout_document,
    plan_document,
)
from lipcast.weights.checkpoint import ADAPTER_MODEL
from lipcast.weights.configs import read_configs

_SUPPOSED_RAM = "64GB"
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
    "offload_kv_cache", "fallback", "allow_degrade", "kernels", "cuda_graphs",
    "enable_vae_parallel", "dit_fsdp", "enable_online_decode", "pose_video", "json", "debug",
)  # fmt: skip


@command(
    "plan",
    (
        Option(
            "gpu", "Graphics card to plan for: rtx4090, rtx3060, h100 and so on.",
            metavar="NAME", show_default="the one in this machine",
        ),
        Option(
            "characters", "People in the picture with a voice each (--character of generate).",
            type=click.IntRange(1, 4), metavar="N", show_default="1",
        ),
        MODEL.with_default(f"{ADAPTER_MODEL}, the published model; its files are not needed"),
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
    constraints = layout_constraints(gpus)
    if gpus.num_gpus == 1 and layouts(request, 1, constraints):
        _show_plan(console, make_plan(request), options_from(MemoryOptions, flags))
    else:
        request = with_enough_steps(request, gpus.num_gpus, constraints)
        _show_layouts(console, request, plan_layouts(request, gpus.num_gpus, constraints))


def _show_plan(console: Console, chosen: Plan, memory: MemoryOptions) -> None:
    others, below = alternatives(chosen), ladder(chosen, allowed_fallbacks(memory, chosen.request))
    if console.as_json:
        print_json({
            "plan": plan_document(chosen),
            "alternatives": [alternative_document(other) for other in others],
            "ladder": [fallback_document(fallback) for fallback in below],
        })  # fmt: skip
    else:
        click.echo(plan_text(chosen, others, below), nl=False)


def _show_layouts(console: Console, request: PlanRequest, found: tuple[LayoutPlan, ...]) -> None:
    if console.as_json:
        print_json({"layouts": [layout_document(layout) for layout in found]})
    else:
        click.echo(layouts_text(request, found), nl=False)


def plan_request(flags: Mapping[str, Any]) -> PlanRequest:
    """Return what the planner is asked. Raises UsageError for options that make no sense."""
    models, options = read_configs(flags.get("model", ADAPTER_MODEL)), generate_options(flags)
    memory = options_from(MemoryOptions, flags)
    cards = () if "gpu" in flags else listed_cards()
    hardware = gpu(flags["gpu"]) if "gpu" in flags else card_hardware(cards, memory)
    gpus = gpu_options(flags)
    hardware = expected_kernels(hardware, gpus.kernels, attention=gpus.attention)
    budget = _budget(memory, hardware, is_supposed=not cards)
    inputs = PlannerInputs(
        hardware, budget, memory, models, precision(flags), graphs=gpus.cuda_graphs
    )
    geometry = supposed_spec(options, models).geometry
    return inputs.request(geometry, options, num_characters=flags.get("characters", 1))


def _budget(memory: MemoryOptions, hardware: Hardware, *, is_supposed: bool) -> Budget:
    """Return the budget; without --ram that of the machine, or a usual one for a supposed card."""
    ram_bytes = parse_bytes(_SUPPOSED_RAM) if is_supposed else _free_ram_bytes()
    return Budget(
        memory.budget_bytes("vram", hardware.memory_bytes), memory.budget_bytes("ram", ram_bytes)
    )


def this_machine(cards: Sequence[DriverCard]) -> tuple[Hardware, Budget]:
    """Return the first card and all memory of this machine; raises UsageError without a card."""
    hardware = card_hardware(cards, MemoryOptions())
    return hardware, _budget(MemoryOptions(), hardware, is_supposed=False)


def _free_ram_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def card_hardware(cards: Sequence[DriverCard], memory: MemoryOptions) -> Hardware:
    """Return the first of this machine's cards; where there is none, any that has the memory of --vram."""
    vram_bytes = memory.budget_bytes("vram", 0)
    if not cards and not vram_bytes:
        raise UsageError(
            "no GPU found in this machine; name one with --gpu, such as --gpu rtx4090, or give its "
            "memory with --vram"
        )
    if not cards:
        return generic_gpu(vram_bytes)
    card = cards[0]
    memory_bytes = card.memory_bytes or vram_bytes
    if not memory_bytes:
        raise UsageError(
            f"{card.name} does not say how much memory it has; give a size with --vram, or a card like it "
            "with --gpu"
        )
    return gpu_described(card.name, memory_bytes, card.capability)
