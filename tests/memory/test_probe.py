"""What a GPU is planned as: the table's rates, the measured link, and what fp8 trials answer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models
from lipcast.config.precision import Precision
from lipcast.engine import planner_inputs
from lipcast.engine.loading import read_precision
from lipcast.errors import UsageError
from lipcast.memory import probe
from lipcast.models.kernels.choice import ChosenKernels
from lipcast.models.kernels.plain import Kernels
from lipcast.planning import costs, items, sizes
from lipcast.planning.inputs import supposed_spec
from lipcast.planning.planner import make_plan
from lipcast.weights import quant_linear
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.fp4 import Fp4Support
from lipcast.weights.fp8 import Fp8Support

GPU = torch.device("cuda", 0)
PUBLISHED = Models()
FEED_FORWARD = (13824, 5120)


def card(monkeypatch: pytest.MonkeyPatch, name: str, support: Fp8Support) -> list[Any]:
    """Put a card in this machine that answers the trial so; returns the sizes that it is asked for."""
    asked: list[Any] = []

    def trial(_: torch.device, layer_sizes: Any) -> Fp8Support:
        asked.append(layer_sizes)
        return support

    properties = SimpleNamespace(name=name, total_memory=32 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (31 << 30, 32 << 30))
    monkeypatch.setattr(probe, "link_bytes_per_s", lambda _: 50e9)
    monkeypatch.setitem(quant_linear._SUPPORT, "fp8", trial)
    monkeypatch.setitem(quant_linear._SUPPORT, "nvfp4", lambda *_: Fp4Support(False))
    plain = ChosenKernels(Kernels(), "no card to try")
    monkeypatch.setattr(planner_inputs, "choose_kernels", lambda *_: plain)
    return asked


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 4090"])
@pytest.mark.parametrize(
    ("support", "multiplies"),
    [
        (Fp8Support("row-wise"), True),
        (Fp8Support("row-wise", frozenset({FEED_FORWARD})), False),
        (Fp8Support("per-tensor"), False),
        (Fp8Support("none"), False),
    ],
)
def test_fp8_is_planned_as_the_trial_answers(
    monkeypatch: pytest.MonkeyPatch, name: str, support: Fp8Support, multiplies: bool
) -> None:
    asked = card(monkeypatch, name, support)
    monkeypatch.setattr(planner_inputs, "read_configs", lambda _: PUBLISHED)
    inputs = planner_inputs.measure_planner_inputs(
        checkpoint_dir("tiny"), GPU, MemoryOptions(), precision="fp8", dtype=torch.bfloat16
    )
    assert asked == [sizes.linear_sizes(PUBLISHED.dit)] and FEED_FORWARD in asked[0]
    assert inputs.hardware.has_fp8 is multiplies
    options = GenerateOptions(schedule="sequential")
    request = inputs.request(supposed_spec(options, PUBLISHED).geometry, options)
    found = make_plan(request)
    other = make_plan(
        replace(request, hardware=replace(inputs.hardware, multiplies_fp8=not multiplies))
    )
    workspace = sizes.widest_linear_bytes(PUBLISHED.dit, "fp8")
    activations = [
        next(i.num_bytes for i in plan.generate_parts if i.name == items.ACTIVATIONS)
        for plan in (found, other)
    ]
    assert costs.needs_dequantising(inputs.hardware, "fp8") is not multiplies
    assert abs(activations[1] - activations[0]) == workspace
    assert (activations[0] < activations[1]) is multiplies
    assert (found.time.compute_s < other.time.compute_s) is multiplies


@pytest.mark.parametrize(("precision", "tried"), [(None, 0), ("bf16", 0), ("fp8", 0), ("nvfp4", 1)])
def test_nvfp4_is_tried_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: Precision | None, tried: int
) -> None:
    """A trial compiles kernels, and no plan turns to NVFP4 by itself."""
    card(monkeypatch, "NVIDIA GeForce RTX 5090", Fp8Support("none"))
    asked: list[Any] = []
    monkeypatch.setitem(
        quant_linear._SUPPORT, "nvfp4", lambda *sizes: asked.append(sizes) or Fp4Support(True)
    )
    assert probe.describe_gpu(GPU, [FEED_FORWARD], precision=precision).has_fp4 is bool(tried)
    assert len(asked) == tried


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (12, 0)])
def test_only_cards_from_ampere_on_compute_in_bf16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if capability >= (8, 0):
        assert read_precision(None, GPU) == (torch.bfloat16, None)
        assert read_precision("int8", GPU) == (torch.bfloat16, "int8")
        return
    assert read_precision(None, GPU) == (torch.float32, None)
    assert "has no bf16: everything is computed in fp32" in caplog.text
    assert read_precision("fp32", GPU) == (torch.float32, "fp32")
    with pytest.raises(UsageError, match="has no bf16, which int8 needs"):
        read_precision("int8", GPU)
