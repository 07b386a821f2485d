"""Networks go where the plan puts them, and a GPU is named with its index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models
from lipcast.engine import loading, planner_inputs
from lipcast.engine.loading import LoadSettings, device_of, load_networks, read_device
from lipcast.memory.device import expands_segments
from lipcast.memory.device_context import DeviceContext
from lipcast.planning.hardware import gpu
from lipcast.planning.inputs import PlannerInputs
from lipcast.planning.plan import Budget, Plan
from lipcast.planning.workload import HOST_RESERVE_BYTES
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
    monkeypatch.setattr(DeviceContext, "of", lambda *found, **budgets: (*found, budgets))
    inputs = PlannerInputs(
        gpu("rtx4080"), Budget(17 << 29, 20 << 30), MemoryOptions(vram="8.5GiB"), Models(), None
    )
    found: Any = planner_inputs.open_device_context(read_device(None), inputs)
    assert bounded == [(0.5, torch.device("cuda", 0))]
    # Less the reserve of the context and the allocator, and of the process.
    assert found == (
        torch.device("cuda", 0),
        {"vram_bytes": (17 << 29) - (750 << 20), "ram_bytes": 18 << 30},
    )


def test_a_loaded_model_cannot_take_more_than_its_budget() -> None:
    settings = LoadSettings(
        checkpoint_dir("tiny"), CPU, torch.float32, memory=MemoryOptions(vram="1GB", ram="9GB")
    )
    _, manager = load_networks(settings, networks=("dit",))
    assert manager is not None
    context = manager.device_context
    assert context.vram.budget_bytes == 10**9
    assert context.ram.budget_bytes == 9 * 10**9 - HOST_RESERVE_BYTES
    with pytest.raises(torch.OutOfMemoryError, match="of the budget of"):
        context.vram.allocate("rings", 10**9)


@pytest.mark.parametrize(
    ("system", "release", "is_configured", "expands"),
    [
        ("Linux", "6.8.0-45-generic", False, True),
        ("Linux", "6.8.0-45-generic", True, False),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", False, False),
        ("Linux", "5.15.148-tegra", False, False),
        ("Windows", "11", False, False),
        ("Darwin", "24.0.0", False, False),
    ],
)
def test_segments_grow_where_cuda_has_virtual_memory(
    system: str, release: str, is_configured: bool, expands: bool
) -> None:
    assert expands_segments(system, release, is_configured=is_configured) is expands


@pytest.mark.parametrize("configured", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_is_prepared_before_cuda_is_used(
    monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("lipcast.memory.device.platform.system", lambda: "Linux")
    monkeypatch.setattr("lipcast.memory.device.platform.release", lambda: "6.8.0")
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", calls.append)

    def set_device(_: torch.device) -> None:
        calls.append("CUDA starts")
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    if configured:
        monkeypatch.setenv(configured, "max_split_size_mb:64")
    settings = LoadSettings(checkpoint_dir("tiny"), torch.device("cuda", 0), torch.bfloat16)
    with pytest.raises(InterruptedError):
        load_networks(settings)
    assert calls == (["CUDA starts"] if configured else ["expandable_segments:True", "CUDA starts"])
