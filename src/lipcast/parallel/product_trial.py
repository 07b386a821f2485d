"""Try the direct products of a model's weights in a process that ends at once.

The process that plans several devices must not take memory on any of them: a CUDA context of its own is half
a gigabyte that the plans of the ranks do not count.

Input: a device, a format, the (inputs, outputs) of a model's layers. Output: whether the device multiplies
their fp8 or NVFP4 weights as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

import torch

from lipcast.config.precision import StoredPrecision
from lipcast.env import child_environment, logger
from lipcast.weights.products import LayerSize
from lipcast.weights.quant_linear import multiplies_directly

_log = logger("parallel.product_trial")


def try_elsewhere(
    device: torch.device, precision: StoredPrecision, layer_sizes: Iterable[LayerSize]
) -> bool:
    """Return the answer of `multiplies_directly` in another process; False where that process fails."""
    tried = subprocess.run(
        [sys.executable, "-m", "lipcast.parallel.product_trial", str(device)],
        input=json.dumps([precision, sorted(set(layer_sizes))]),
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if tried.returncode:
        _log.warning(
            "%s products could not be tried on %s: %s", precision, device, tried.stderr[-300:]
        )
        return False
    return bool(json.loads(tried.stdout))


def main() -> None:
    """Read a format and sizes from standard input, write the answer to standard output."""
    precision, pairs = json.load(sys.stdin)
    sizes = [(num_in, num_out) for num_in, num_out in pairs]
    sys.stdout.write(json.dumps(multiplies_directly(torch.device(sys.argv[1]), precision, sizes)))


if __name__ == "__main__":
    main()
