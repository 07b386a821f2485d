"""Converts in a process of its own, to be killed or measured: SOURCE OUT PRECISION SHARD_BYTES."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

import torch

from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.quant import quantise_layer
from lipcast.weights.schemes import SCHEMES, Precision


def memory_bytes(key: str) -> int:
    """VmRSS (resident now) or VmHWM (the most since `forget_peak`) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """What was resident before does not count any more (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def main(source: str, out: str, precision: str, shard_bytes: str) -> None:
    torch.set_num_threads(1)
    scheme = SCHEMES.get(cast(Precision, precision))
    if scheme is not None:  # the libraries' own memory is there before the measurement begins
        quantise_layer("warm", torch.ones(64, 64), scheme)
    forget_peak()
    before = memory_bytes("VmRSS")
    request = ConvertRequest(
        Path(source), Path(out), cast(Precision, precision), shard_bytes=int(shard_bytes)
    )
    convert(request)
    sys.stdout.write(json.dumps({"growth_bytes": memory_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
