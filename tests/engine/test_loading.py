"""Networks go where the plan puts them, and a GPU is named with its index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lipcast.config.memory_options import MemoryOptions
from lipcast.engine import loading, planner_inputs
from lipcast.engine.loading import LoadSettings, device_of, load_networks, read_device
from lipcast.memory.device_context import DeviceContext
from lipcast.planning.plan import Plan
from lipcast.weights.checkpoint import checkpoint_dir

CPU = torch.device("cpu")


@pytest.mark.parametrize(("placement", "expected"), [("device", "meta"), ("host", "cpu")])
def test_the_speech_encoder_is_where_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, placement: Any, expected: str
) -> None:
    planned = loading._planned

    def with_placement(*arguments: Any) -> tuple[Any, Plan]:
        manager, plan = planned(*arguments)
        return manager, replace(plan, speech_encoder=placement)

    found: list[torch.device] = []

    def no_bundle(*_: Any, speech_device: torch.device, **__: Any) -> None:
        found.append(speech_device)
        raise InterruptedError

    monkeypatch.setattr(loading, "_planned", with_placement)
    monkeypatch.setattr(loading, "load_bundle", no_bundle)
    monkeypatch.setattr(
        loading, "device_of", lambda place, _: device_of(place, torch.device("meta"))
    )
    settings = LoadSettings(
        checkpoint_dir("tiny"), CPU, torch.float32, memory=MemoryOptions(vram="1GB")
    )
    with pytest.raises(InterruptedError):
        load_networks(settings)
    assert [device.type for device in found] == [expected]


def test_a_gpu_has_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_per_process_memory_fraction` refuses a device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert read_device(None) == torch.device("cuda", 0)
    assert read_device("cuda") == torch.device("cuda", 0)
    assert read_device("cuda:1") == torch.device("cuda", 1)
    assert read_device("cpu") == CPU


def test_a_budget_bounds_the_allocator_of_the_default_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded: list[tuple[float, torch.device]] = []

    class Properties:
        total_memory = 16 << 30

    def set_fraction(fraction: float, device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"expected a device with an index, got {device}")
        bounded.append((fraction, device))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    monkeypatch.setattr(DeviceContext, "of", lambda device: device)
    planner_inputs.open_device_context(read_device(None), MemoryOptions(vram="8.5GiB"))
    assert bounded == [(0.5, torch.device("cuda", 0))]
