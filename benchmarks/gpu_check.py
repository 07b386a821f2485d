"""Check what Lipcast claims of a GPU.

Needs torch, numpy, safetensors and transformers from a source checkout; no network, no video library.

    python benchmarks/gpu_check.py count [--json]    launches, bytes and FLOP of the true model; no GPU
    python benchmarks/gpu_check.py right             does CUDA compute what the CPU computes?
    python benchmarks/gpu_check.py fast              true shapes, against ceilings and the plan
    python benchmarks/gpu_check.py small             24, 16, 12 and 8 GiB

The last three take at most nine minutes each on one GPU. Every part is a process; what it finds is
written to $OUT (or --out, or ./out) after every part, and a table is printed last. The exit code is the
number of refuted claims. `--device cpu --model small` runs the same code without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

import torch

from gpu import count, fast, right, small
from gpu.report import Settings
from gpu.runner import run_all, run_one

CHECKS = {"right": right.PARTS, "fast": fast.PARTS, "small": small.PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    count.add_command(commands)
    for name in CHECKS:
        _add_check(commands, name)
    options = parser.parse_args()
    result: int = options.run(options)
    return result


def _add_check(commands: Any, name: str) -> None:
    parser = commands.add_parser(name)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device)
    parser.add_argument("--model", choices=("full", "small"), default="full")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in CHECKS[name]])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run_check)


def _run_check(options: argparse.Namespace) -> int:
    settings = Settings(
        options.command, torch.device(options.device), options.model, options.out.absolute()
    )
    parts = {part.name: part for part in CHECKS[options.command]}
    if options.part:
        return run_one(parts[options.part], settings)
    return run_all([parts[name] for name in options.parts or parts], settings)


if __name__ == "__main__":
    sys.exit(main())
