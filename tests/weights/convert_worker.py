"""Converts in a process of its own, to be killed or measured: SOURCE OUT PRECISION SHARD_BYTES.

OUT "-" loads the transformer in that precision instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

import torch

from lipcast.config.models import DiTConfig
from lipcast.config.precision import StoredPrecision
from lipcast.models.dit import DiT
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.quant import quantise_layer, quantised
from lipcast.weights.schemes import SCHEMES


def memory_bytes(key: str) -> int:
    """VmRSS (resident now) or VmHWM (the most since `forget_peak`) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """What was resident before does not count any more (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def load(source: Path, precision: StoredPrecision) -> DiT:
    """The transformer, quantised while it is read."""
    with without_memory():
        dit = DiT(DiTConfig.from_json(json.loads((source / "config.json").read_text())))
    weights = open_tensors(find_checkpoint(source).dit or source)
    load_into(dit, quantised(weights, precision), dtype=torch.bfloat16)
    return dit


def main(source: str, out: str, precision: str, shard_bytes: str) -> None:
    torch.set_num_threads(1)
    scheme = SCHEMES.get(cast(StoredPrecision, precision))
    if scheme is not None:  # the libraries' own memory is there before the measurement begins
        quantise_layer("warm", torch.ones(64, 64), scheme)
    forget_peak()
    before = memory_bytes("VmRSS")
    kind = cast(StoredPrecision, precision)
    if out == "-":
        loaded = load(Path(source), kind)
    else:
        convert(ConvertRequest(Path(source), Path(out), kind, shard_bytes=int(shard_bytes)))
        loaded = None
    del loaded
    sys.stdout.write(json.dumps({"growth_bytes": memory_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
