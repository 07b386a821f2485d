"""The embedded model with its memory planned, on a device made of ordinary memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.engine.backend import LocalBackend
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.manager import MemoryManager
from lipcast.models.dit import DiT
from lipcast.planning.hardware import CPU as CPU_RATES
from lipcast.planning.inputs import PlannerInputs
from lipcast.planning.plan import Budget
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.configs import read_configs
from lipcast.weights.files import open_tensors
from lipcast.weights.load import without_memory

sys.path.insert(0, str(Path(__file__).parent / "memory"))
from fake_device import CPU, LateCopier, arenas

PLENTY = 2**40
SIDE = 64
SMALL: dict[str, Any] = {"size": f"{SIDE}*{SIDE}", "infer_frames": 16}


def planned(tiny: lipcast.Lipcast, vram_bytes: int = PLENTY, **memory: Any) -> lipcast.Lipcast:
    """The model of `tiny`, its transformer loaded anew under a plan for small videos."""
    vram, ram = arenas()
    terms = PlannerInputs(
        hardware=CPU_RATES,
        budget=Budget(vram_bytes, PLENTY),
        options=MemoryOptions(**memory),
        models=read_configs(checkpoint_dir("tiny")),
        precision="fp32",
    )
    memory_manager = MemoryManager(DeviceContext(CPU, vram, ram, LateCopier()), terms)
    options = GenerateOptions(**SMALL)
    geometry = tiny.spec(options, height=SIDE, width=SIDE).geometry
    with without_memory():
        dit = DiT(tiny.bundle.dit.config)
    source = open_tensors(checkpoint_dir("tiny") / "diffusion_pytorch_model.safetensors")
    memory_manager.load(
        dit, source, plan=memory_manager.plan(geometry, options), dtype=torch.float32
    )
    bundle = replace(tiny.bundle, dit=dit.eval().requires_grad_(False))
    return lipcast.Lipcast(bundle, LocalBackend(bundle, memory_manager))


def manager_of(model: lipcast.Lipcast) -> MemoryManager:
    """The memory manager of a model whose memory is planned."""
    assert isinstance(model.backend, LocalBackend) and model.backend.manager is not None
    return model.backend.manager


class Faults:
    """Lets the chosen calls of whatever it wraps run out of memory."""

    def __init__(self, fail_at: set[int]) -> None:
        self._fail_at, self.num_calls = fail_at, 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*args: Any, **more: Any) -> Any:
            number, self.num_calls = self.num_calls, self.num_calls + 1
            if number in self._fail_at:
                raise torch.OutOfMemoryError(f"injected at call {number}")
            return call(*args, **more)

        return calling
