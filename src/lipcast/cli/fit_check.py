"""Whether a model fits this machine: by the planner where there is a GPU, by sums on the CPU.

Input: the configurations of a model. Output: one sentence and a yes or no. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipcast.cli.info import describe
from lipcast.cli.plan import this_machine
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models
from lipcast.config.units import format_bytes
from lipcast.errors import MemoryBudgetError, UsageError
from lipcast.lab.driver import DriverCard
from lipcast.planning.inputs import PlannerInputs, supposed_spec
from lipcast.planning.planner import make_plan
from lipcast.planning.sizes import packed_bytes
from lipcast.planning.tensors import dit_tensors

_LAYERS = ("blocks.", "audio_injector.")


@dataclass(frozen=True, slots=True)
class FitResult:
    """`sentence` says where it would run and with what, or what it lacks."""

    fits: bool
    sentence: str


def fit(configs: Models, cards: Sequence[DriverCard]) -> FitResult:
    """A video of the model's own size on this machine's first GPU, else on its CPU."""
    try:
        hardware, budget = this_machine(cards)
    except UsageError:
        return _fit_cpu(configs)
    options = GenerateOptions()
    inputs = PlannerInputs(hardware, budget, MemoryOptions(), configs, None)
    request = inputs.request(supposed_spec(options, configs).geometry, options)
    try:
        plan = make_plan(request)
    except MemoryBudgetError as error:
        return FitResult(False, str(error))
    speed = f"{plan.frames_per_s:.1f} frames/s predicted"
    return FitResult(True, f"{hardware.label}: {plan.config.precision}, {speed}")


def _fit_cpu(configs: Models) -> FitResult:
    import psutil

    free = int(psutil.virtual_memory().available)
    for precision, num_bytes in cpu_needs(configs).items():
        if num_bytes <= free:
            return FitResult(True, f"CPU: {precision}, about {format_bytes(num_bytes)} of memory")
    needed = format_bytes(min(cpu_needs(configs).values()))
    return FitResult(False, f"CPU: needs about {needed} of memory, {format_bytes(free)} are free")


def cpu_needs(configs: Models) -> dict[str, int]:
    """Bytes of host memory by precision of the transformer's weights, the rest in bf16."""
    parts = describe("", configs, GenerateOptions())["bytes"]["bf16"]
    tensors = dit_tensors(configs.dit)
    layers = {name: shape for name, shape in tensors.items() if name.startswith(_LAYERS)}
    kept = {name: shape for name, shape in tensors.items() if name not in layers}
    rest = parts["sum"] - parts["transformer weights"] + packed_bytes(kept, "bf16")
    return {
        "bf16": parts["sum"],
        "int8": rest + packed_bytes(layers, "int8"),
        "int4": rest + packed_bytes(layers, "int4"),
    }
