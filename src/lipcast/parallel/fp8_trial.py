"""Try the fp8 products of a model in a process that ends at once.

The process that plans several devices must not take memory on any of them: a CUDA context of its own is half
a gigabyte that the plans of the ranks do not count.

Input: a device, the (inputs, outputs) of a model's layers. Output: whether the device multiplies their fp8
weights as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

import torch

from lipcast.env import child_environment, logger
from lipcast.memory.probe import multiplies_fp8
from lipcast.weights.fp8 import LayerSize

_log = logger("parallel.fp8_trial")


def try_elsewhere(device: torch.device, layer_sizes: Iterable[LayerSize]) -> bool:
    """Return the answer of `multiplies_fp8` in another process; False where that process fails."""
    tried = subprocess.run(
        [sys.executable, "-m", "lipcast.parallel.fp8_trial", str(device)],
        input=json.dumps(sorted(set(layer_sizes))),
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if tried.returncode:
        _log.warning("fp8 products could not be tried on %s: %s", device, tried.stderr[-300:])
        return False
    return bool(json.loads(tried.stdout))


def main() -> None:
    """Read sizes from standard input, write the answer to standard output."""
    sizes = [(num_in, num_out) for num_in, num_out in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(multiplies_fp8(torch.device(sys.argv[1]), sizes)))


if __name__ == "__main__":
    main()
