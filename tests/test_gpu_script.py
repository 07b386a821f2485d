"""The script that measures GPUs runs, as a small model on a CPU: the same code, the same document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_lowvram.py"


@pytest.mark.slow
def test_a_cell_streams_and_reports() -> None:
    cell = {
        "size": "64*64", "infer_frames": 48, "budget_gib": 0.0095, "precision": "fp8",
        "num_blocks": 2, "cpu": True,
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), "--cell", json.dumps(cell)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    plan, measured = found["memory"]["plan"], found["memory"]["measured"]
    assert "pinned" in plan["layers"] and found["copied_bytes_per_block"] > 0
    assert found["stores_equal_the_plan"] and not found["memory"]["fallbacks"]["taken"]
    assert measured["vram_peak_bytes"] <= plan["vram"]["peak_bytes"] <= 0.0095 * 2**30
    assert found["frames_per_s"] > 0 and found["dit_frames_per_s"] > 0
