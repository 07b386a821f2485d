"""The commands of `benchmarks/gpu_check.py` that need no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
MEASURES = "launches_per_step", "elementwise_gb_per_step", "gemm_tflop", "attention_tflop"


@pytest.mark.slow
def test_counts_are_one_document() -> None:
    command = [sys.executable, str(SCRIPT), "count", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    for measure in MEASURES:
        assert {"fp8", "bf16", "fp8_ring_fp8", "bf16_ring_int4"} <= document[measure].keys()
        assert document[measure]["fp8"] == document["fp8"][measure] > 0
    assert document["launches_per_step"]["bf16"] < document["launches_per_step"]["fp8"]
    assert document["vae"]["decode_block"]["elementwise_gb"] > 0
