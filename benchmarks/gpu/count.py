"""Count launches, bytes and FLOP of one step and of one decoded block, on fake CUDA tensors.

Output: a table, or with `--json` one document: every measure by case ("fp8": fp8 weights over a bf16
ring; "fp8_ring_int4": over an int4 ring), and the same numbers by case. Kernels are fused, and attention
runs as on Hopper, where ring and sink are joined first; "plain" cases have PyTorch's own operators, and in
"in_place" cases attention reads ring and sink where they lie, as on other GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.lab.counting import Work
from lipcast.lab.gpu_work import StepCase, count_step, count_vae, default_spec
from lipcast.lab.kernel_fit import fitted_counts
from lipcast.planning.kernel_counts import KernelCounts

CASES: Mapping[str, StepCase] = {
    "fp8": StepCase("fp8"),
    "fp8_ring_fp8": StepCase("fp8", "fp8"),
    "fp8_ring_int4": StepCase("fp8", "int4"),
    "bf16": StepCase("bf16"),
    "bf16_ring_fp8": StepCase("bf16", "fp8"),
    "bf16_ring_int4": StepCase("bf16", "int4"),
    "int8": StepCase("int8"),
    "int4": StepCase("int4"),
    "fp8_plain": StepCase("fp8", kernels="plain"),
    "bf16_plain": StepCase("bf16", kernels="plain"),
    "fp8_in_place": StepCase("fp8", in_place=True),
    "bf16_in_place": StepCase("bf16", in_place=True),
}


def add_command(commands: Any) -> None:
    """Add `count` to the commands."""
    parser = commands.add_parser("count", help="count launches, bytes and FLOP; needs no GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--table", action="store_true", help="print the planner's table, counted anew (minutes)"
    )
    parser.add_argument("--size", default="704*384")
    parser.add_argument("--infer-frames", type=int, default=48)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the counts, or the rows of `lipcast.planning.kernel_counts`."""
    if options.table:
        for kernels in get_args(KernelName):
            for name, row in fitted_counts(kernels).items():
                print(f"{kernels}: {name} = {_rounded(row)}", flush=True)
        return 0
    document = counted(options.size, options.infer_frames)
    print(json.dumps(document) if options.json else table(document))
    return 0


def counted(size: str, infer_frames: int) -> dict[str, Any]:
    """Return all counts of the published model at a size."""
    config, vae = DiTConfig(), VAEConfig()
    by_case = {
        name: step_measures(
            count_step(config, case, size=size, infer_frames=infer_frames).total(config)
        )
        for name, case in CASES.items()
    }
    spec = default_spec(config, size=size, infer_frames=infer_frames)
    decoders = {
        kernels: count_vae(vae, spec, still_frames=config.motion_frames, kernels=kernels)
        for kernels in get_args(KernelName)
    }
    return {
        "size": size,
        "infer_frames": infer_frames,
        **{measure: {c: row[measure] for c, row in by_case.items()} for measure in by_case["fp8"]},
        **by_case,
        "vae": {name: vae_measures(work) for name, work in decoders["triton"].items()},
        "vae_plain": {name: vae_measures(work) for name, work in decoders["plain"].items()},
    }


def _rounded(row: KernelCounts) -> KernelCounts:
    return KernelCounts(*(round(getattr(row, field.name), 2) for field in fields(row)))


def step_measures(work: Work) -> dict[str, float]:
    """Return what is reported of a step."""
    return {
        "launches_per_step": work.launches,
        "elementwise_gb_per_step": round(work.elementwise_bytes / 1e9, 2),
        "gemm_tflop": round(work.gemm_flop / 1e12, 2),
        "attention_tflop": round(work.attention_flop / 1e12, 2),
    }


def vae_measures(work: Work) -> dict[str, float]:
    """Return what is reported of a part of the autoencoder."""
    return {
        "launches": work.launches,
        "elementwise_gb": round(work.elementwise_bytes / 1e9, 2),
        "convolution_tflop": round(work.convolution_flop / 1e12, 2),
        "attention_tflop": round(work.attention_flop / 1e12, 2),
    }


def table(document: Mapping[str, Any]) -> str:
    """Return the counts as text."""
    lines = [f"one step at {document['size']}, {document['infer_frames']} frames of window"]
    lines.append(
        f"{'weights and ring':20}{'launches':>10}{'GB':>9}{'GEMM':>8}{'attention':>11} TFLOP"
    )
    for name in CASES:
        launches, gigabytes, gemm, attention = document[name].values()
        lines.append(f"{name:20}{launches:10}{gigabytes:9.1f}{gemm:8.1f}{attention:11.1f}")
    for kernels in ("vae", "vae_plain"):
        lines.append(f"\n{kernels}")
        for name, row in document[kernels].items():
            launches, gigabytes, convolution, _ = row.values()
            lines.append(f"{name:20}{launches:10}{gigabytes:9.1f}{convolution:8.1f} TFLOP")
    return "\n".join(lines)
