"""No access to streamed memory is unordered: in any place, and while things move between places."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from clock_device import Clock, ClockDevice
from small_dit import SMALL, ModelTensors
from torch import Tensor

from lipcast.config.generate_options import GenerateOptions, ScheduleName
from lipcast.config.models import VAEConfig
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.planning.plan import Placement
from lipcast.weights.load import load_into, without_memory
from schedules import take_blocks

ALL_RESIDENT: tuple[Placement, ...] = ("resident",) * SMALL.num_layers
ALL_PINNED: tuple[Placement, ...] = ("pinned",) * SMALL.num_layers
HALF: tuple[Placement, ...] = ("pinned", "resident") * 2
MIXED: tuple[Placement, ...] = ("disk", "resident", "pinned", "disk")

Plans = tuple[SessionPlan, WeightPlan]
RESIDENT: Plans = (SessionPlan(ALL_RESIDENT), WeightPlan(ALL_RESIDENT, 0))
STREAMED: Plans = (SessionPlan(ALL_PINNED, None, sink_streamed=True), WeightPlan(ALL_PINNED, 2))
FP8: Plans = (
    SessionPlan(HALF, "fp8", sink_streamed=True),
    WeightPlan(MIXED, 3, keeps_prompt=False),
)
INT4: Plans = (SessionPlan(ALL_PINNED, "int4"), WeightPlan(HALF, 2))
BLOCKS = 3


def small_spec(schedule: ScheduleName) -> VideoSpec:
    options = GenerateOptions(size="64*64", infer_frames=16, schedule=schedule, sample_steps=2)
    return video_spec(options, SMALL, VAEConfig(), height=64, width=64)


def loaded(device: ClockDevice, plan: WeightPlan) -> tuple[DiT, WeightStore]:
    store = WeightStore(
        ModelTensors(),
        plan,
        dtype=torch.float32,
        device=device.vram,
        host=device.ram,
        copier=device,
    )
    with without_memory():
        model = DiT(SMALL)
    load_into(model, ModelTensors(), dtype=torch.float32, place=store.place)
    store.attach(model)
    return model.eval().requires_grad_(False), store


def run(device: ClockDevice, schedule: ScheduleName, plans: Iterable[Plans]) -> None:
    """Make a few blocks, with another plan before every third tick."""
    spec, upcoming = small_spec(schedule), iter(plans)
    session_plan, weight_plan = next(upcoming)
    with device:
        model, store = loaded(device, weight_plan)
        memory = SessionMemory(model, session_shape(spec), device.context, session_plan)
        executor = LaneExecutor(model, spec, still(spec), torch.ones(4, 16), memory=memory)
        schedule_ticks = ticks(spec.order, max_lanes=spec.max_lanes)
        for number, tick in enumerate(take_blocks(schedule_ticks, BLOCKS, spec.order.num_steps)):
            if number % 3 == 2 and (plan := next(upcoming, None)) is not None:
                executor.apply_plan(plan[0])
                store.apply_plan(plan[1])
                model.encode_text(torch.ones(4, 16))
            for block in (unit.block for unit in tick if unit.step == 0):
                executor.start(block, torch.ones(2, 16, 12))
            executor.run(tick)
        executor.release()
        store.release()


def still(spec: VideoSpec) -> ReferenceLatents:
    height, width = spec.geometry.latent_height, spec.geometry.latent_width
    latents_CFHW = torch.ones(16, 19, height, width)
    return ReferenceLatents(latents_CFHW[:, :1], latents_CFHW, latents_CFHW)


@pytest.mark.parametrize("schedule", ["sequential", "wavefront"])
@pytest.mark.parametrize(
    "plans",
    [
        [STREAMED],
        [FP8, STREAMED, RESIDENT],
        [RESIDENT, INT4, FP8],
        [STREAMED, RESIDENT, STREAMED],
    ],
    ids=["streamed", "to resident", "from resident", "to and fro"],
)
def test_every_access_is_ordered(schedule: ScheduleName, plans: list[Plans]) -> None:
    device = ClockDevice()
    with torch.inference_mode():
        run(device, schedule, plans)
    assert not device.races
    assert device.vram.used_bytes == device.ram.used_bytes == 0


class ForgetfulDevice(ClockDevice):
    """Forgets one kind of order."""

    def __init__(self, forgets: str) -> None:
        super().__init__()
        self._forgets = forgets

    def fetch(self, target: Tensor, source: Tensor, *, after: Iterable[Clock]) -> Clock:
        return super().fetch(target, source, after=() if self._forgets == "fetch" else after)

    def store(self, target: Tensor, source: Tensor, *, after: Iterable[Clock]) -> Clock:
        return super().store(target, source, after=() if self._forgets == "store" else after)

    def wait(self, event: Clock) -> None:
        if self._forgets != "wait":
            super().wait(event)

    def finish(self, event: Clock) -> None:
        if self._forgets != "finish":
            super().finish(event)


@pytest.mark.parametrize("forgets", ["fetch", "store", "wait", "finish"])
def test_the_clocks_see_what_is_not_ordered(forgets: str) -> None:
    device = ForgetfulDevice(forgets)
    with torch.inference_mode():
        run(device, "sequential", [STREAMED, INT4])
    assert device.races
