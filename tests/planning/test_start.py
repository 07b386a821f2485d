"""From the start of a process to the first pictures."""

from __future__ import annotations

import pytest
import torch
from test_planner import ask

from lipcast.config.precision import StoredPrecision
from lipcast.lab.counting import OperatorCount
from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.planning.planner import make_plan
from lipcast.planning.start import QUANTISING_BYTES, start_document, start_time
from lipcast.weights.quant import quantise_weight
from lipcast.weights.schemes import SCHEMES


@pytest.mark.parametrize("precision", sorted(SCHEMES))
def test_traffic_of_quantising_is_counted(precision: StoredPrecision) -> None:
    """On the GPU, of a true layer; the weight crosses the link in its own 16 bits."""
    weight = torch.empty(5120, 5120, dtype=torch.bfloat16, device="meta")
    with fake_cuda(), OperatorCount() as counted:
        parts = quantise_weight(
            torch.empty_like(weight, device="cpu"), SCHEMES[precision], device=DEVICE
        )
    work = counted.total()
    assert {part.device for part in parts.values()} == {DEVICE}
    assert work.elementwise_bytes / weight.numel() == pytest.approx(
        QUANTISING_BYTES[precision], rel=0.01
    )
    few = 2 * 4 if precision == "nvfp4" else 0  # its one scale
    assert work.link_bytes == 2 * weight.nbytes + few, "read there, written here"


def test_an_h100_starts_within_its_disk_and_seconds() -> None:
    plan = make_plan(ask("h100", 64))
    start, converted = start_time(plan), start_time(plan, converted=True)
    assert start.quantise_s < start.read_s, "the disk decides"
    assert start.pin_s < 2, "only the weights for a new prompt"
    assert start.total_s == pytest.approx(start.read_s + 7.4, abs=1)
    assert converted.total_s < 15
    assert start_document(plan)["total_s"] == round(start.total_s, 2)


def test_streaming_locks_host_memory_first() -> None:
    assert start_time(make_plan(ask("rtx4060", 64))).pin_s > 15
