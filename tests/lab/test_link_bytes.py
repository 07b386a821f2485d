"""What really crosses the link per block is what the plan lists: the streaming code, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from fake_videos import FakeWeights
from torch import Tensor

from lipcast.config.generate_options import ScheduleName
from lipcast.config.models import DiTConfig, Models
from lipcast.config.precision import KVPrecision, Precision
from lipcast.config.schedule import Unit, lanes_of
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.lab.gpu_work import (
    STEADY_BLOCK,
    default_spec,
    fake_device_context,
    fake_features,
    fake_reference,
)
from lipcast.memory.copier import CudaCopier
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.planning import link
from lipcast.planning.hardware import gpu
from lipcast.planning.plan import WHOLE, Budget, PlanConfig, PlanRequest, total
from lipcast.planning.workload import Workload
from lipcast.weights.load import load_into, without_memory

CONFIG = replace(DiTConfig(), num_layers=3, audio_inject_layers=(0,))
"""True widths, and more layers than slots; all are alike, so that the list of 40 is right if that of 3 is."""


class CountingCopier(CudaCopier):
    """The link, and the bytes that crossed it."""

    to_device = to_host = 0

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Any]) -> Any:
        assert (target.device, source.device.type) == (DEVICE, "cpu")
        self.to_device += source.nbytes
        return super().fetch(target, source, after=after)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Any]) -> Any:
        assert (target.device.type, source.device) == ("cpu", DEVICE)
        self.to_host += source.nbytes
        return super().store(target, source, after=after)


def link_bytes(
    precision: Precision, kv: KVPrecision, schedule: ScheduleName, infer_frames: int
) -> tuple[int, int]:
    """Bytes per block, to the GPU and to the host, with everything streamed."""
    spec = default_spec(CONFIG, infer_frames=infer_frames)
    spec = replace(spec, max_lanes=lanes_of(schedule, spec.order.num_steps))
    context, layers = fake_device_context(), ("pinned",) * CONFIG.num_layers
    copier = CountingCopier(DEVICE)
    context = replace(context, copier=copier)
    source = FakeWeights(CONFIG, precision)  # type: ignore[arg-type]
    store = WeightStore(
        source, WeightPlan(layers, 2), dtype=torch.bfloat16,
        device=context.vram, host=context.ram, copier=copier,
    )  # fmt: skip
    with without_memory():
        dit = DiT(CONFIG)
    load_into(dit, source, dtype=torch.bfloat16, device=DEVICE, place=store.place)
    store.attach(dit)
    memory = SessionMemory(dit, session_shape(spec), context, SessionPlan(layers, kv, True))
    text = torch.empty(120, CONFIG.text_dim, device=DEVICE)
    reference = fake_reference(spec, CONFIG)
    run = LaneExecutor(dit, spec, reference, text, memory=memory)
    *warming, block = _ticks(spec.order.num_steps, spec.max_lanes)
    for tick in chain.from_iterable(warming):
        _run(run, tick)
    copier.to_device = copier.to_host = 0
    for tick in block:
        _run(run, tick)
    counted = copier.to_device, copier.to_host
    run.release()
    return counted


def _run(executor: LaneExecutor, tick: tuple[Unit, ...]) -> None:
    for unit in tick:
        if unit.step == 0:
            executor.start(unit.block, fake_features(CONFIG))
    executor.run(tick)


def _ticks(num_steps: int, num_lanes: int) -> list[list[tuple[Unit, ...]]]:
    """Ticks that write every ring, and those of one more block, as a running video has them."""
    first = STEADY_BLOCK
    if num_lanes == 1:
        return [[(Unit(first + n, step),) for step in range(num_steps)] for n in range(2)]
    return [
        [tuple(Unit(first + n - step, step) for step in range(min(n + 1, num_steps)))]
        for n in range(num_steps + 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "kv", "schedule", "infer_frames"),
    [("int4", "fp8", "wavefront", 48)],
)
def test_the_plan_lists_what_crosses(
    precision: Precision, kv: KVPrecision, schedule: ScheduleName, infer_frames: int
) -> None:
    with fake_cuda():
        to_gpu, to_host = link_bytes(precision, kv, schedule, infer_frames)
    geometry = default_spec(CONFIG, infer_frames=infer_frames).geometry
    plenty = Budget(2**50, 2**50)
    request = PlanRequest(geometry, gpu("h100"), plenty, models=Models(CONFIG))
    config = PlanConfig(precision, kv, schedule, True, 2, (1, 1))
    work = Workload(request, WHOLE, config)
    assert to_host == total(link.to_host_parts(work, 0))
    # The weights of a block's audio push a layer that was prefetched out of its slot, once per block.
    planned = total(link.to_gpu_parts(work, 0, 0))
    assert planned <= to_gpu <= planned + work.widest_layer_bytes
