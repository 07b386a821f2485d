"""Videos of true widths on fake CUDA tensors: two layers, every placement, the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import KVPrecision, StoredPrecision
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.lab.fake_cuda import DEVICE
from lipcast.lab.gpu_work import default_spec, fake_device_context, fake_features, fake_reference
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.planning.plan import Placement
from lipcast.planning.tensors import dit_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.quant import kept_because
from lipcast.weights.schemes import SCHEMES
from lipcast.weights.source import TensorInfo, TensorSource

TWO_LAYERS = replace(DiTConfig(), num_layers=2, audio_inject_layers=(0, 1))
INFER_FRAMES = 12
"""A window of one block: the ring wraps with every block."""


@dataclass(frozen=True)
class Placed:
    """Where a video's memory lies and how it is stored."""

    precision: StoredPrecision = "bf16"
    weights: Placement = "resident"
    rings: Placement = "resident"
    kv_precision: KVPrecision | None = None
    sink_streamed: bool = False
    num_lanes: int = 1

    def session_plan(self, config: DiTConfig) -> SessionPlan:
        layers = (self.rings,) * config.num_layers
        return SessionPlan(layers, self.kv_precision, self.sink_streamed)


class FakeWeights(TensorSource):
    """A checkpoint's tensors without values, in stored form."""

    def __init__(self, config: DiTConfig, precision: StoredPrecision) -> None:
        self.path, self.files, self.metadata = Path("fake"), (), {}
        self.infos = {info.name: info for info in _infos(config, precision)}

    def read(self, name: str) -> Tensor:
        return torch.empty(self.infos[name].shape, dtype=self.infos[name].dtype)


def _infos(config: DiTConfig, precision: StoredPrecision) -> Iterator[TensorInfo]:
    scheme = SCHEMES.get(precision)
    for name, shape in dit_tensors(config).items():
        plain = TensorInfo(name, shape, torch.bfloat16)
        if scheme is None or kept_because(plain) is not None:
            yield plain
            continue
        for part, (part_shape, dtype) in scheme.part_shapes(*shape).items():
            yield TensorInfo(f"{name.removesuffix('.weight')}.{part}", part_shape, dtype)


def loaded_dit(config: DiTConfig, placed: Placed) -> DiT:
    """The transformer, filled by the weight store as a plan would have it. Needs `fake_cuda`."""
    context, source = fake_device_context(), FakeWeights(config, placed.precision)
    num_slots = 0 if placed.weights == "resident" else 2
    store = WeightStore(
        source,
        WeightPlan((placed.weights,) * config.num_layers, num_slots),
        dtype=torch.bfloat16,
        device=context.vram,
        host=context.ram,
        copier=context.copier,
    )
    with without_memory():
        dit = DiT(config)
    load_into(dit, source, dtype=torch.bfloat16, device=DEVICE, place=store.place)
    store.attach(dit)
    return dit.eval().requires_grad_(False)


@contextmanager
def opened(
    placed: Placed, config: DiTConfig = TWO_LAYERS
) -> Iterator[tuple[LaneExecutor, VideoSpec]]:
    """An executor before its first block, released at the end."""
    spec = default_spec(config, infer_frames=INFER_FRAMES)
    spec = replace(spec, max_lanes=placed.num_lanes)
    dit = loaded_dit(config, placed)
    plan = placed.session_plan(config)
    memory = SessionMemory(dit, session_shape(spec), fake_device_context(), plan)
    context = torch.empty(120, config.text_dim, device=DEVICE)
    executor = LaneExecutor(dit, spec, fake_reference(spec, config), context, memory=memory)
    yield executor, spec
    executor.release()


def run_blocks(
    executor: LaneExecutor, spec: VideoSpec, *, count: int, first_block: int = 0
) -> list[Tensor]:
    """Clean latents of the next blocks."""
    config = executor._model.config
    done: list[Tensor] = []
    for tick in ticks(spec.order, max_lanes=spec.max_lanes, first_block=first_block):
        for unit in tick:
            if unit.step == 0:
                executor.start(unit.block, fake_features(config))
        done += [latent for _, latent in executor.run(tick)]
        if len(done) >= count:
            break
    return done


def latent_shape(spec: VideoSpec) -> tuple[int, ...]:
    """Shape of one block's latents."""
    geometry = spec.geometry
    frames = geometry.latents_per_block
    return geometry.latent_channels, frames, geometry.latent_height, geometry.latent_width


VAE = VAEConfig()
