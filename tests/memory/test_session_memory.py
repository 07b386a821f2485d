"""Rings and sink in any place give the video that has them all at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_device import CPU, LateCopier, arenas
from hypothesis import given, settings
from hypothesis import strategies as st

import lipcast
from lipcast.config.generate_options import GenerateOptions, ScheduleName
from lipcast.config.precision import KVPrecision
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.layer_buffers import LayerBuffers
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.memory.slots import SlotPool
from lipcast.models.kv_codec import kv_codec
from lipcast.models.kv_ring import RingLayout
from lipcast.planning import items, sizes
from lipcast.planning.plan import Placement
from schedules import take_blocks

BLOCKS = 5
SIDE = 64
WHERE: tuple[Placement, ...] = ("resident", "pinned")


def fake_device_context() -> DeviceContext:
    vram, ram = arenas()
    return DeviceContext(CPU, vram, ram, LateCopier())


def make_spec(tiny: lipcast.Lipcast, schedule: ScheduleName, infer_frames: int) -> VideoSpec:
    options = GenerateOptions(size=f"{SIDE}*{SIDE}", infer_frames=infer_frames, schedule=schedule)
    return tiny.spec(options, height=SIDE, width=SIDE)


def executor(tiny: lipcast.Lipcast, spec: VideoSpec, memory: SessionMemory | None) -> LaneExecutor:
    config, generator = tiny.bundle.dit.config, torch.Generator().manual_seed(1)
    side = spec.geometry.latent_height

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    reference = ReferenceLatents(
        noise(16, 1, side, side), noise(16, 19, side, side), torch.empty(0)
    )
    return LaneExecutor(tiny.bundle.dit, spec, reference, noise(7, config.text_dim), memory=memory)


def make_latents(
    tiny: lipcast.Lipcast,
    spec: VideoSpec,
    memory: SessionMemory | None = None,
    plans: dict[int, SessionPlan] | None = None,
) -> torch.Tensor:
    """Latents of a few blocks; `plans` says which plan comes into force before which tick."""
    config, run = tiny.bundle.dit.config, executor(tiny, spec, memory)
    steps, found = spec.order.num_steps, []
    schedule = take_blocks(ticks(spec.order, max_lanes=spec.max_lanes), BLOCKS, steps)
    for number, tick in enumerate(schedule):
        if plans and number in plans:
            run.apply_plan(plans[number])
        for unit in tick:
            if unit.step == 0:
                generator = torch.Generator().manual_seed(unit.block)
                shape = config.num_audio_layers, config.audio_dim, 12
                run.start(unit.block, torch.randn(*shape, generator=generator))
        found += [latent for _, latent in run.run(tick)]
    return torch.cat(found, dim=1)


def plan_of(tiny: lipcast.Lipcast, data: st.DataObject) -> SessionPlan:
    layers = st.tuples(*[st.sampled_from(WHERE)] * tiny.bundle.dit.config.num_layers)
    return SessionPlan(data.draw(layers), None, data.draw(st.booleans()))


@pytest.mark.parametrize("schedule", ["sequential", "wavefront"])
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_any_place_gives_the_same_latents(
    tiny: lipcast.Lipcast, schedule: ScheduleName, data: st.DataObject
) -> None:
    spec = make_spec(tiny, schedule, data.draw(st.sampled_from((12, 16, 24))))
    memory = SessionMemory(
        tiny.bundle.dit, session_shape(spec), fake_device_context(), plan_of(tiny, data)
    )
    moves = {data.draw(st.integers(0, 12)): plan_of(tiny, data) for _ in range(3)}
    assert torch.equal(make_latents(tiny, spec, memory, moves), make_latents(tiny, spec))


@pytest.mark.parametrize(("precision", "most"), [("fp8", 0.1), ("int4", 0.25)])
def test_rings_change_their_precision_under_way(
    tiny: lipcast.Lipcast, precision: KVPrecision, most: float
) -> None:
    """Before the change as if it never came; and streamed as resident, whatever the codec."""
    spec, num_layers = make_spec(tiny, "sequential", 16), tiny.bundle.dit.config.num_layers
    steps = spec.order.num_steps
    resident: tuple[Placement, ...] = ("resident",) * num_layers
    streamed: tuple[Placement, ...] = ("pinned",) * num_layers
    found = []
    for layers, sink_streamed in ((resident, False), (streamed, True)):
        memory = SessionMemory(tiny.bundle.dit, session_shape(spec), fake_device_context())
        before = memory.num_bytes
        plan = SessionPlan(layers, precision, sink_streamed)
        found.append(make_latents(tiny, spec, memory, {2 * steps: plan}))
        assert memory.num_bytes < before
    assert torch.equal(*found)
    plain, frames = make_latents(tiny, spec), 2 * spec.geometry.latents_per_block
    assert torch.equal(found[0][:, :frames], plain[:, :frames])
    error = (found[0] - plain)[:, frames:].norm() / plain[:, frames:].norm()
    assert 0 < error < most


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
@pytest.mark.parametrize("schedule", ["sequential", "wavefront"])
def test_bytes_are_the_planners(
    tiny: lipcast.Lipcast, precision: KVPrecision, schedule: ScheduleName
) -> None:
    spec, config = make_spec(tiny, schedule, 16), tiny.bundle.dit.config
    layers: tuple[Placement, ...] = ("resident", *("pinned",) * (config.num_layers - 1))
    device_context, steps, lanes = fake_device_context(), spec.order.num_steps, spec.max_lanes
    ring = sizes.ring_layer_bytes(config, spec.geometry, precision)
    sink = sizes.sink_layer_bytes(config, spec.geometry, "fp32")
    placed = sizes.placed_layer_bytes(config, spec.geometry, "fp32")
    for sink_streamed in (False, True):
        plan = SessionPlan(layers, precision, sink_streamed)
        memory = SessionMemory(tiny.bundle.dit, session_shape(spec), device_context, plan)
        sinks = 2 * sink if sink_streamed else config.num_layers * (sink + lanes * placed)
        assert device_context.vram.parts == {
            items.RINGS: steps * ring, items.RING_SLOTS: 2 * lanes * ring, items.SINK: sinks,
        }  # fmt: skip
        pinned = {items.PINNED_RINGS: (config.num_layers - 1) * steps * ring}
        assert device_context.ram.parts == pinned | (
            {items.SINK: config.num_layers * sink} if sink_streamed else {}
        )
        memory.release()
        assert not device_context.vram.parts and not device_context.ram.parts


def test_out_of_memory_while_moving_loses_nothing(tiny: lipcast.Lipcast) -> None:
    spec, config = make_spec(tiny, "sequential", 16), tiny.bundle.dit.config
    expected = make_latents(tiny, spec)
    streamed: tuple[Placement, ...] = ("pinned",) * config.num_layers
    device_context = fake_device_context()
    memory = SessionMemory(tiny.bundle.dit, session_shape(spec), device_context)
    ring = sizes.ring_layer_bytes(config, spec.geometry, "fp32")
    device_context.ram.budget_bytes = 5 * ring + 1
    with pytest.raises(torch.OutOfMemoryError, match="KV rings, pinned"):
        memory.apply_plan(SessionPlan(streamed))
    device_context.ram.budget_bytes = None
    memory.apply_plan(SessionPlan(streamed, None, sink_streamed=True))
    assert torch.equal(make_latents(tiny, spec, memory), expected)


def test_only_new_frames_go_back(tiny: lipcast.Lipcast) -> None:
    """A tick writes a block's frames to the host, and reads the others of every layer once that has any."""
    spec, config = make_spec(tiny, "sequential", 48), tiny.bundle.dit.config
    device_context = fake_device_context()
    streamed: tuple[Placement, ...] = ("pinned",) * config.num_layers
    plan = SessionPlan(streamed)
    memory = SessionMemory(tiny.bundle.dit, session_shape(spec), device_context, plan)
    make_latents(tiny, spec, memory)
    copier = device_context.copier
    assert isinstance(copier, LateCopier)
    num_ticks = BLOCKS * spec.order.num_steps
    layer = sizes.ring_layer_bytes(config, spec.geometry, "fp32")
    block = layer * spec.geometry.latents_per_block // spec.geometry.window
    passes = config.num_layers * num_ticks
    assert copier.bytes_to_host == passes * block
    passes_with_content = passes - config.num_layers * spec.order.num_steps
    fetched = copier.bytes_to_device / (layer - block)
    assert passes_with_content <= fetched <= passes_with_content + 1


@pytest.fixture
def slots_are_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a layer comes into a slot, all of the slot becomes no number: so does whatever is left out."""
    fetch = LayerBuffers._fetch

    def poisoned(
        self: LayerBuffers, index: int, left_out: Any, slot: torch.Tensor, after: Any
    ) -> Any:
        for event in after:
            self._allocator.copier.finish(event)
        slot.fill_(0xFF)
        return fetch(self, index, left_out, slot, after)

    monkeypatch.setattr(LayerBuffers, "_fetch", poisoned)


@pytest.mark.parametrize("infer_frames", [12, 16, 24])
@pytest.mark.parametrize("schedule", ["sequential", "wavefront"])
def test_nothing_that_is_left_out_is_read(
    tiny: lipcast.Lipcast, schedule: ScheduleName, infer_frames: int, slots_are_poisoned: None
) -> None:
    """Windows of one block, of no whole number of blocks, of two; all, two and one layer streamed."""
    spec, count = make_spec(tiny, schedule, infer_frames), tiny.bundle.dit.config.num_layers
    plans = [
        SessionPlan(tuple(WHERE[layer < streamed] for layer in range(count)), sink_streamed=True)
        for streamed in (count, 2, 1)
    ]
    memory = SessionMemory(tiny.bundle.dit, session_shape(spec), fake_device_context(), plans[0])
    found = make_latents(tiny, spec, memory, {5: plans[1], 7: plans[2]})
    assert torch.equal(found, make_latents(tiny, spec))


def test_a_layer_that_is_read_without_being_written_is_whole() -> None:
    """What is left out is remembered until it is written: a pass that was broken off leaves no gaps."""
    layout, copier = RingLayout(kv_codec("fp32", num_heads=1, head_dim=2), 4, 1), LateCopier()
    vram, ram = arenas()
    context = DeviceContext(CPU, vram, ram, copier)
    buffers = LayerBuffers(layout, ("pinned",) * 3, allocator=context.allocator("a", "b"))
    pool = SlotPool(vram, copier, part="s", num_slots=2, slot_bytes=layout.num_bytes)
    buffers.pass_through(pool, buffers)
    for layer in range(3):
        buffers.planes(layer).keys[0].fill_(layer)
        buffers.write_back(layer, [(0, layout.num_bytes)])
    overwritten, following = (list(layout.byte_ranges((first, 1))) for first in (0, 1))
    first = {"overwritten": overwritten, "overwritten_next": following}
    for layer in (0, 1):
        buffers.planes(layer, **first)  # and no write
    for layer in (1, 2, 0):
        assert (buffers.planes(layer).keys[0] == layer).all()
    pool.close()
    buffers.release()
