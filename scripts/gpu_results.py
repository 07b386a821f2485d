"""Write docs/gpu-results.md: what GPUs measured, and what the planner predicts.

    .venv/bin/python scripts/gpu_results.py
    .venv/bin/python scripts/gpu_results.py --add out/fast.json

`--add` keeps the figures of a `benchmarks/gpu_check.py` document in benchmarks/gpu_results.jsonl, from which
the measured tables are written. A test fails while the page and its figures differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import KernelName
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.precision import Precision
from lipcast.config.units import GIB
from lipcast.planning.hardware import Hardware, gpu
from lipcast.planning.inputs import PlannerInputs, supposed_spec
from lipcast.planning.plan import Budget, Plan
from lipcast.planning.planner import make_plan
from lipcast.weights.checkpoint import ADAPTER_MODEL
from lipcast.weights.configs import read_configs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu-results.md"
FIGURES = ROOT / "benchmarks" / "gpu_results.jsonl"
CARDS = ("rtx4060", "rtx3060", "rtx4090", "l40s", "rtx5090", "a100-80", "h100", "h200", "b200")
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")
_OPTIONS = GenerateOptions(size="704*384", infer_frames=48)
_RAM_BYTES = 128 * GIB

_TOP = """\
# Results on GPUs

Figures with the name of the card that they come from. `scripts/gpu_results.py` writes this page.

## Measured

"""
_NOTHING = """\
Nothing of this version has been measured yet. Whoever has a card at hand:

```text
python benchmarks/gpu_check.py right
python benchmarks/gpu_check.py fast
python benchmarks/gpu_check.py small
python scripts/gpu_results.py --add out/right.json out/fast.json out/small.json
```

"""
_PUBLIC = """\
## What there is to beat

The public implementation on one H100 SXM 80GB (700 W, PyTorch 2.11, CUDA 13.0, cuDNN 9.19), random weights
of the true shapes, 704x384, 48 frames of window, and what matrix products and attention of a step take on the
same card with nothing else:

| | fp8 | bf16 |
| --- | --- | --- |
| a step, `torch.compile`, ms | 262 | 301 |
| a step, eager, ms | 386 | 389 |
| products and attention alone, ms | 141 | 192 |
| four steps and decoding of a clip again and again, frames/s | 2.8 | |
| decoding a block of 12 frames, ms | | 242 |

Products of 3,168 rows, fp8, TFLOP/s (with a scale per row; with one per tensor): 5120x5120 1,309 and 1,337,
5120x13824 1,211 and 1,370, 13824x5120 1,011 and 1,364. A scale per row costs about 7 ms a step there; `fast`
measures both on a card (part `ceilings`), and a choice by layer waits for that.

## Predicted

By the planner (`lipcast plan --gpu CARD`), 704x384, 48 frames, three evaluations a block, 128 GiB of host
memory: milliseconds of one step of one lane, and frames per second with decoding, with PyTorch's own
operators (`--kernels plain`) and with [fused kernels](kernels.md). **Predictions from counts and data
sheets, no measurements.** Where weights or rings do not fit they are streamed, and copies may take longer
than the step.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="JSON")
    for path in parser.parse_args().add:
        with FIGURES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record(json.loads(path.read_text("utf-8")))) + "\n")
    PAGE.write_text(page(measured()), "utf-8")


def record(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a document of a check: card, figures, refuted claims."""
    parts = document["parts"]
    claims = [claim for part in parts.values() for claim in part["claims"]]
    return {
        "card": document["device"],
        "command": document["command"],
        "figures": {
            f"{name}: {key}": value
            for name, part in parts.items()
            for key, value in part["figures"].items()
        },
        "held": sum(claim["holds"] is True for claim in claims),
        "refuted": [claim["text"] for claim in claims if claim["holds"] is False],
    }


def measured() -> list[dict[str, Any]]:
    """Return the records that are kept."""
    lines = FIGURES.read_text("utf-8").splitlines() if FIGURES.exists() else []
    return [json.loads(line) for line in lines]


def page(records: list[dict[str, Any]]) -> str:
    """Return the page."""
    found = "".join(_measured(one) for one in records) or _NOTHING
    return _TOP + found + _PUBLIC + "\n".join(predicted()) + "\n"


def _measured(one: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in one["figures"].items()]
    refuted = "; ".join(one["refuted"]) or "none"
    head = (
        f"### {one['card']}, `{one['command']}`\n\n{one['held']} claims hold. Refuted: {refuted}.\n"
    )
    return "\n".join([head, "| figure | value |", "| --- | --- |", *rows, "", ""])


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return str(value).replace("|", "\\|")


def predicted() -> Iterator[str]:
    """Yield the rows of the predicted table."""
    yield "| card | precision | ms a step, plain | fused | frames/s, plain | fused | streamed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for card in CARDS:
        for precision in PRECISIONS:
            plain, fused = (_plan(gpu(card), precision, kernels) for kernels in ("plain", "triton"))
            yield _row(plain, fused)


def _plan(hardware: Hardware, precision: Precision, kernels: KernelName) -> Plan:
    models = read_configs(ADAPTER_MODEL)
    hardware = replace(hardware, kernels=kernels)
    budget, memory = Budget(hardware.memory_bytes, _RAM_BYTES), MemoryOptions()
    inputs = PlannerInputs(hardware, budget, memory, models, precision)
    return make_plan(inputs.request(supposed_spec(_OPTIONS, models).geometry, _OPTIONS))


def _row(plain: Plan, fused: Plan) -> str:
    steps = [1e3 * plan.time.compute_s / plan.request.num_evaluations for plan in (plain, fused)]
    rates = [plan.frames_per_s for plan in (plain, fused)]
    label, config = fused.request.hardware.label, fused.config
    ring = "" if config.kv_precision == "bf16" else f", ring {config.kv_precision}"
    parts = {"weights": fused.layers, "rings": fused.ring_layers}
    streamed = [name for name, where in parts.items() if set(where) != {"resident"}]
    cells = [f"{x:.0f}" for x in steps] + [f"{x:.1f}" for x in rates]
    return " | ".join(
        [
            f"| {label}",
            f"{config.precision}{ring}",
            *cells,
            f"{' and '.join(streamed) or 'nothing'} |",
        ]
    )


if __name__ == "__main__":
    main()
