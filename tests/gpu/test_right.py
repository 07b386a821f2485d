"""The claims of `gpu_check.py right` as tests, on the GPU of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu.report import Report, Settings
from gpu.right import PARTS
from gpu.runner import Part

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("part", PARTS, ids=[part.name for part in PARTS])
def test_no_claim_is_refuted(part: Part, tmp_path: Path) -> None:
    settings = Settings("right", torch.device("cuda:0"), "full", tmp_path)
    report = Report(tmp_path / f"{part.name}.json")
    part.run(settings, report)
    assert report.claims
    assert not [claim for claim in report.claims if claim.holds is False]
