"""Whatever has been allocated goes back to the arenas, however it ends."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from failing_device import FailingDevice, Fault
from small_dit import SHAPE, SMALL, ModelTensors, small_dit
from torch import Tensor

from lipcast.config.precision import KVPrecision
from lipcast.memory.disk_reader import DiskReader
from lipcast.memory.layer_buffers import LayerBuffers
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.memory.slots import SlotPool
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.models.kv_codec import PlainCodec
from lipcast.models.kv_ring import RingLayout
from lipcast.planning.plan import Placement
from lipcast.weights.load import load_into, without_memory

ALL_RESIDENT: tuple[Placement, ...] = ("resident",) * SMALL.num_layers
ALL_PINNED: tuple[Placement, ...] = ("pinned",) * SMALL.num_layers
MIXED: tuple[Placement, ...] = ("resident", "pinned", "disk", "pinned")
LAYOUT = RingLayout(PlainCodec(2, 32, torch.float32), SHAPE.window, SHAPE.tokens_per_frame)
SESSION_PLANS = (
    SessionPlan(ALL_RESIDENT),
    SessionPlan(("pinned", "resident") * 2, "fp8"),
    SessionPlan(ALL_PINNED, "int4", sink_streamed=True),
)
WEIGHT_PLANS = (
    WeightPlan(ALL_RESIDENT, 0),
    WeightPlan(ALL_PINNED, 3),
    WeightPlan(MIXED, 2, keeps_prompt=False),
)


@pytest.fixture
def device() -> FailingDevice:
    return FailingDevice()


def new_session(device: FailingDevice, plan: SessionPlan = SESSION_PLANS[2]) -> SessionMemory:
    return SessionMemory(small_dit(), SHAPE, device.context, plan)


# Constructors that fail half way


@pytest.mark.parametrize("plan", SESSION_PLANS, ids=["resident", "mixed", "streamed"])
def test_a_session_that_does_not_fit_keeps_nothing(
    device: FailingDevice, plan: SessionPlan
) -> None:
    num_failures = 0
    for _ in device.failures_of(lambda: new_session(device, plan).release()):
        num_failures += 1
        assert device.used_bytes == (0, 0)
    assert num_failures > SMALL.num_layers


def test_buffers_slots_and_staging_that_do_not_fit_keep_nothing(device: FailingDevice) -> None:
    allocator = device.context.allocator("rings", "rings, pinned")
    calls = (
        lambda: LayerBuffers(LAYOUT, MIXED, allocator=allocator).release(),
        lambda: SlotPool(
            device.vram, device.copier, part="slots", num_slots=3, slot_bytes=8
        ).close(),
        lambda: DiskReader(
            ModelTensors(), host=device.ram, copier=device.copier, num_bytes=8
        ).close(),
    )
    for call, expected in zip(calls, (4, 3, 2), strict=True):
        failures = [device.used_bytes for _ in device.failures_of(call)]
        assert failures == [(0, 0)] * expected
    assert device.used_bytes == (0, 0)


@pytest.mark.parametrize("plan", WEIGHT_PLANS, ids=["resident", "pinned", "mixed"])
def test_weights_that_do_not_fit_keep_nothing(device: FailingDevice, plan: WeightPlan) -> None:
    def place() -> None:
        store = empty_store(device, plan)
        with without_memory():
            model = DiT(SMALL)
        load_into(model, ModelTensors(), dtype=torch.float32, place=store.place)
        placed = device.used_bytes
        try:
            store.attach(model)
        except torch.OutOfMemoryError:
            assert device.used_bytes == placed  # no slots and no staging
            raise
        finally:
            store.release()

    num_failures = 0
    for _ in device.failures_of(place):
        num_failures += 1
        assert device.used_bytes == (0, 0)
    assert num_failures > SMALL.num_layers


# Sessions that end


def test_release_gives_everything_back_and_may_be_repeated(device: FailingDevice) -> None:
    memory = new_session(device)
    assert min(device.used_bytes) > 0
    memory.release()
    memory.release()
    assert device.used_bytes == (0, 0)


def test_a_session_is_a_context_manager(device: FailingDevice) -> None:
    with pytest.raises(KeyError), new_session(device) as memory:
        assert memory.num_bytes > 0
        raise KeyError
    assert device.used_bytes == (0, 0)


def test_a_dropped_session_gives_its_memory_back(device: FailingDevice) -> None:
    memory = new_session(device)
    memory.apply_plan(SESSION_PLANS[1])
    write_rings(memory)
    del memory
    gc.collect()
    assert device.used_bytes == (0, 0)


# Plans that fail half way


def write_rings(memory: SessionMemory) -> None:
    for step, ring in enumerate(memory.rings):
        for layer in range(SMALL.num_layers):
            generator = torch.Generator().manual_seed(10 * step + layer)
            k_TNd, v_TNd = torch.randn(2, 16, 2, 32, generator=generator)
            ring.write(layer, 0, k_TNd, v_TNd)


def read_rings(memory: SessionMemory) -> Tensor:
    found = torch.empty(len(memory.rings), SMALL.num_layers, 2, 16, 2, 32)
    for ring, found_L in zip(memory.rings, found, strict=True):
        for layer, found_2TNd in enumerate(found_L):
            ring.read_into(layer, 4, *found_2TNd)
    return found


@pytest.mark.parametrize("fault", ["allocation", "copy"])
@pytest.mark.parametrize("precision", [None, "fp8", "int4"])
@pytest.mark.parametrize(("old", "new"), [(0, 2), (2, 0), (1, 2), (2, 1)])
def test_a_session_survives_plans_that_fail(
    device: FailingDevice, fault: Fault, precision: KVPrecision | None, old: int, new: int
) -> None:
    """The rings hold what they held, and another plan may follow than the one that failed."""
    before = SessionPlan(
        SESSION_PLANS[old].ring_layers, None, sink_streamed=SESSION_PLANS[old].sink_streamed
    )
    wanted = SessionPlan(
        SESSION_PLANS[new].ring_layers, precision, sink_streamed=SESSION_PLANS[new].sink_streamed
    )
    memory, num_failures = new_session(device, before), 0
    write_rings(memory)
    exact, used_before = read_rings(memory), device.used_bytes
    for _ in device.failures_of(partial(memory.apply_plan, wanted), fault):
        num_failures += 1
        memory.apply_plan(before)
        assert device.used_bytes == used_before
        assert_close(read_rings(memory), exact, precision)
        write_rings(memory)
    assert num_failures > 3
    assert_close(read_rings(memory), exact, precision)
    memory.release()
    assert device.used_bytes == (0, 0)


def assert_close(found: Tensor, exact: Tensor, precision: KVPrecision | None) -> None:
    if precision is None:
        assert torch.equal(found, exact)
    else:
        assert (found - exact).norm() < 0.15 * exact.norm()


def empty_store(device: FailingDevice, plan: WeightPlan) -> WeightStore:
    return WeightStore(
        ModelTensors(),
        plan,
        dtype=torch.float32,
        device=device.vram,
        host=device.ram,
        copier=device.copier,
    )


def new_store(device: FailingDevice, plan: WeightPlan) -> tuple[WeightStore, DiT]:
    store = empty_store(device, plan)
    with without_memory():
        model = DiT(SMALL)
    load_into(model, ModelTensors(), dtype=torch.float32, place=store.place)
    store.attach(model)
    return store, model


def check_weights(model: DiT) -> None:
    """Every group of parameters is the source's when it is asked for."""
    tensors = ModelTensors().tensors
    for use, prefix in (("prompt", "cross_attn.k"), ("tick", "self_attn.q"), ("tick", "ffn.0")):
        for layer in range(SMALL.num_layers):
            model.ensure_resident(use, layer)
            name = f"blocks.{layer}.{prefix}.weight"
            assert torch.equal(model.get_parameter(name), tensors[name])


def plan_of(store: WeightStore) -> WeightPlan | None:
    return store.plan


@pytest.mark.parametrize("fault", ["allocation", "copy"])
@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)])
def test_weights_survive_plans_that_fail(
    device: FailingDevice, fault: Fault, old: int, new: int
) -> None:
    """The plan that was in force can be applied again, and so can the one that failed."""
    before, wanted = WEIGHT_PLANS[old], WEIGHT_PLANS[new]
    store, model = new_store(device, before)
    used_before, num_failures = device.used_bytes, 0
    for number in device.failures_of(partial(store.apply_plan, wanted), fault):
        num_failures += 1
        assert plan_of(store) is None
        if number % 2:
            store.apply_plan(wanted)
            check_weights(model)
        store.apply_plan(before)
        check_weights(model)
        store.apply_plan(before)
        assert (store.plan, device.used_bytes) == (before, used_before)
    assert (store.plan, num_failures > 1) == (wanted, True)
    check_weights(model)
    store.release()
    store.release()
    assert device.used_bytes == (0, 0)


def test_the_prompts_buffer_is_not_used_after_it_is_freed(device: FailingDevice) -> None:
    _, model = new_store(device, WEIGHT_PLANS[1])
    keys = [model.get_submodule(f"blocks.{i}.cross_attn.k") for i in range(SMALL.num_layers)]
    for layer, module in enumerate(keys):
        model.ensure_resident("prompt", layer)
        assert not module.weight.is_meta
    model.ensure_resident("tick", 0)
    assert all(module.weight.is_meta for module in keys)
