"""What the plan says a model takes, against what the process really grows by, on a CPU.

    .venv/bin/python scripts/soak/plan_against_rss.py

A transformer of more than 1 GB with random weights is loaded and makes a few blocks, once with everything
at hand and once with all weights and rings streamed from a second place (on a CPU, the same memory). Prints
both and, last, one JSON document. Ends with status 1 where they differ by more than 5 %.
"""

from __future__ import annotations

import gc
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu.checkpoints import dit_infos
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import DiTConfig, Models, VAEConfig
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import video_spec
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.manager import MemoryManager, session_plan
from lipcast.memory.session_memory import SessionMemory
from lipcast.models.dit import DiT
from lipcast.planning.hardware import CPU
from lipcast.planning.inputs import PlannerInputs
from lipcast.planning.plan import Budget
from lipcast.weights.load import without_memory
from lipcast.weights.source import TensorSource

CONFIG = DiTConfig(
    dim=1024, ffn_dim=2816, num_heads=8, num_layers=26, text_dim=256, audio_dim=128,
    num_audio_layers=4, audio_inject_layers=(0, 4, 8, 12),
)  # fmt: skip
LIMIT = 0.05
NOISE_BYTES = 1 << 22
BLOCKS = 5
PLENTY = 2**40


class RandomWeights(TensorSource):
    """A transformer's tensors in bf16, made of one ramp of small numbers."""

    def __init__(self, config: DiTConfig) -> None:
        self.path, self.files, self.metadata = Path("random"), (), {}
        self.infos = {info.name: info for info in dit_infos(config, "bf16")}
        self._small = torch.linspace(-0.02, 0.02, NOISE_BYTES // 2).bfloat16()

    def read(self, name: str) -> torch.Tensor:
        info = self.infos[name]
        if "norm" in name or name.endswith(".weights"):
            return torch.ones(info.shape, dtype=info.dtype)
        repeats = -(-info.num_elements // len(self._small))
        return self._small.repeat(repeats)[: info.num_elements].view(info.shape)


def main() -> None:
    rows = [measure(offload=offload) for offload in (False, True)]
    for row in rows:
        print(row, flush=True)
    print(json.dumps({"rows": rows}))
    if any(abs(row["error"]) > LIMIT for row in rows):
        sys.exit(1)


def measure(*, offload: bool) -> dict[str, Any]:
    """Predicted bytes of what the stores hold, and the growth of the process."""
    device = torch.device("cpu")
    spec = video_spec(
        GenerateOptions(size="128*128", schedule="sequential"),
        CONFIG,
        VAEConfig(),
        height=128,
        width=128,
    )
    options = MemoryOptions(offload_model=offload, offload_kv_cache=offload)
    terms = PlannerInputs(CPU, Budget(PLENTY, PLENTY), options, Models(CONFIG), "bf16")
    memory_manager = MemoryManager(DeviceContext.of(device), terms)
    plan = memory_manager.plan(spec.geometry, spec.options)
    warm_up()
    before = resident_bytes()
    with without_memory():
        model = DiT(CONFIG)
    memory_manager.load(model, RandomWeights(CONFIG), plan=plan, dtype=torch.bfloat16)
    side = spec.geometry.latent_height
    reference = ReferenceLatents(
        torch.zeros(16, 1, side, side), torch.zeros(16, 19, side, side), torch.empty(0)
    )
    memory = SessionMemory(
        model, session_shape(spec), memory_manager.device_context, session_plan(plan)
    )
    executor = LaneExecutor(model, spec, reference, torch.zeros(9, CONFIG.text_dim), memory=memory)
    voice = torch.zeros(CONFIG.num_audio_layers, CONFIG.audio_dim, 12)
    for tick in islice(ticks(spec.order, max_lanes=1), BLOCKS * spec.order.num_steps):
        for unit in tick:
            if unit.step == 0:
                executor.start(unit.block, voice)
        executor.run(tick)
    grown = resident_bytes() - before
    known = {**memory_manager.device_context.vram.parts, **memory_manager.device_context.ram.parts}
    taken = (
        memory_manager.device_context.vram.used_bytes + memory_manager.device_context.ram.used_bytes
    )
    generate = {part.name: part.num_bytes for part in plan.generate_parts}
    predicted = taken + generate["text and audio keys"]
    return {
        "offload": offload,
        "predicted_bytes": predicted,
        "grown_bytes": grown,
        "error": predicted / grown - 1,
        "parts": known,
    }


def warm_up() -> None:
    """Pages of libraries that the first product touches are not the model's."""
    x = torch.randn(512, 512, dtype=torch.bfloat16)
    (x @ x).sum().item()


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
