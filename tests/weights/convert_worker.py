"""Converts in a process of its own, to be killed or measured: SOURCE OUT PRECISION SHARD_BYTES."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import cast

import torch

from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.quant import quantise_layer
from lipcast.weights.schemes import SCHEMES, Precision


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(source: str, out: str, precision: str, shard_bytes: str) -> None:
    torch.set_num_threads(1)
    scheme = SCHEMES.get(cast(Precision, precision))
    if scheme is not None:  # the libraries' own memory is there before the measurement begins
        quantise_layer("warm", torch.ones(64, 64), scheme)
    before = peak_bytes()
    request = ConvertRequest(
        Path(source), Path(out), cast(Precision, precision), shard_bytes=int(shard_bytes)
    )
    convert(request)
    sys.stdout.write(json.dumps({"growth_bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
