"""The commands of `benchmarks/gpu_check.py` that need no GPU."""

from __future__ import annotations

import json
import os
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("right", ["environment", "fp8", "stored", "attention", "vae", "placements", "sessions"]),
        ("fast", ["ceilings", "fp8", "decoder", "end"]),
        ("small", ["24GiB", "8GiB-int4", "descent"]),
    ],
)
def test_checks_run_without_a_gpu(command: str, parts: list[str], tmp_path: Path) -> None:
    """No claim is refuted, and every part writes what it finds; PyAV is not needed."""
    (tmp_path / "av.py").write_text("raise ImportError('PyAV is not there')")
    options = ["--device", "cpu", "--model", "small", "--out", str(tmp_path), "--parts", *parts]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), command, *options],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / f"{command}.json").read_text())["parts"]
    assert list(found) == parts
    assert all(part["claims"] or part["figures"] for part in found.values())


def test_refuted_claims_are_counted() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    from gpu.runner import num_refuted, table

    claims = [{"text": "a", "holds": holds, "found": "x"} for holds in (True, False, None, False)]
    found = {"part": {"claims": claims, "figures": {}, "seconds": 1.0}}
    assert num_refuted(found) == 2
    assert table(found).endswith("2 claims refuted")
