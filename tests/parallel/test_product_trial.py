"""Layouts count with the fp8 products that a GPU has, tried without taking memory on it."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.engine.loading import LoadSettings
from lipcast.parallel import distributed_model
from lipcast.parallel.distributed_model import plan_distributed
from lipcast.parallel.product_trial import try_elsewhere
from lipcast.weights.checkpoint import checkpoint_dir

_CARD = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=24 << 30, major=8, minor=9)


@pytest.mark.parametrize("answer", [True, False])
def test_layouts_are_planned_with_the_answer_of_the_trial(
    monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    asked: list[tuple[torch.device, frozenset[tuple[int, int]]]] = []

    def tried(device: torch.device, precision: str, sizes: frozenset[tuple[int, int]]) -> bool:
        assert precision == "fp8"
        asked.append((device, sizes))
        return answer

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: _CARD)
    monkeypatch.setattr(distributed_model, "try_elsewhere", tried)
    settings = LoadSettings(
        checkpoint_dir("tiny"), torch.device("cuda"), torch.bfloat16, precision="fp8"
    )
    _, request = plan_distributed(settings, GpuOptions(gpus=2), GenerateOptions(), exactly=False)
    assert request.hardware.has_fp8 is answer
    assert [device for device, _ in asked] == [torch.device("cuda")] and asked[0][1]


def test_the_trial_answers_from_its_own_process() -> None:
    assert try_elsewhere(torch.device("cpu"), "fp8", {(5120, 5120)}) is False


def test_a_trial_that_fails_counts_as_no(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert try_elsewhere(torch.device("cpu"), "fp8", {(5120, 5120)}) is False
    assert "could not be tried on cpu" in caplog.text
