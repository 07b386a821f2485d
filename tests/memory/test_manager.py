"""The manager's weights are whole or absent, whatever fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from failing_device import FailingDevice
from small_dit import SMALL, ModelTensors
from torch import Tensor

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.geometry import Geometry
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models, VAEConfig
from lipcast.errors import CheckpointError
from lipcast.memory.manager import MemoryManager
from lipcast.models.dit import DiT
from lipcast.planning.hardware import CPU
from lipcast.planning.inputs import PlannerInputs
from lipcast.planning.plan import Budget
from lipcast.weights.load import without_memory

GEOMETRY = Geometry.of(SMALL, VAEConfig(), height=64, width=64, infer_frames=16)
PLENTY = 2**40


class BrokenTensors(ModelTensors):
    """A file whose tensors from a number on cannot be read."""

    def __init__(self, first_broken: int) -> None:
        super().__init__()
        self.num_read, self._first_broken = 0, first_broken

    def read(self, name: str) -> Tensor:
        self.num_read += 1
        if self.num_read > self._first_broken:
            raise CheckpointError("the file ends early")
        return super().read(name)


def manager_on(device: FailingDevice) -> MemoryManager:
    inputs = PlannerInputs(
        hardware=CPU,
        budget=Budget(PLENTY, PLENTY),
        options=MemoryOptions(),
        models=Models(SMALL, VAEConfig()),
        precision="fp32",
    )
    return MemoryManager(device.context, inputs)


def load(manager: MemoryManager, source: ModelTensors) -> DiT:
    with without_memory():
        model = DiT(SMALL)
    plan = manager.plan(GEOMETRY, GenerateOptions())
    manager.load(model, source, plan=plan, dtype=torch.float32)
    return model


@pytest.mark.parametrize("first_broken", [0, 1, 30])
def test_a_file_that_cannot_be_read_leaves_nothing_loaded(first_broken: int) -> None:
    device = FailingDevice()
    manager = manager_on(device)
    with pytest.raises(CheckpointError, match="ends early"):
        load(manager, BrokenTensors(first_broken))
    assert device.used_bytes == (0, 0) and manager.store is None
    load(manager, ModelTensors())
    assert min(device.used_bytes) > 0


def test_later_plans_leave_the_speech_encoder_where_it_was_loaded() -> None:
    manager = manager_on(FailingDevice())
    load(manager, ModelTensors())
    assert manager.inputs.speech_encoder == "device"
    request = manager.inputs.request(GEOMETRY, GenerateOptions())
    assert request.constraints.speech_encoder == "device"


def test_the_sessions_that_are_left_can_use_the_weights() -> None:
    """One session's plan fails half way; when it is closed, the other goes on."""
    device = FailingDevice()
    manager = manager_on(device)
    model = load(manager, ModelTensors())
    first, second = (manager.admit(GEOMETRY, GenerateOptions()) for _ in range(2))
    streamed = replace(second.plan, layers=("pinned",) * SMALL.num_layers)
    device.maker.fail_at = device.maker.num_made + 2
    with pytest.raises(torch.OutOfMemoryError):
        second.apply_plan(streamed)
    second.release()
    weights = ModelTensors().tensors
    for layer in range(SMALL.num_layers):
        model.ensure_resident("tick", layer)
        name = f"blocks.{layer}.self_attn.q.weight"
        assert torch.equal(model.get_parameter(name), weights[name])
    first.release()


def test_a_plan_alone_counts_every_character_as_an_admission_does() -> None:
    """A rank that decodes takes its tiles from the first, its stage from the second."""
    manager, options = manager_on(FailingDevice()), GenerateOptions()
    one, three = (manager.plan(GEOMETRY, options, num_characters=count) for count in (1, 3))
    assert one.vram_bytes < three.vram_bytes
    assert manager.admit(GEOMETRY, options, num_characters=3).plan == three
