"""Convert a synthetic 4 GB checkpoint to every quantised precision and print what memory it took.

    python scripts/soak/convert_4gb.py [--gigabytes 4] [--folder /tmp/lipcast-soak] [--lora]

Each conversion runs in its own process. Printed per precision: seconds, largest tensor, growth of
the resident memory over the loaded libraries, size and error of the result. The last line is JSON.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save_file

from lipcast.config.precision import StoredPrecision
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.lora import LoraSpec
from lipcast.weights.manifest import verify
from lipcast.weights.quant import kept_because, quantise_layer
from lipcast.weights.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from synthetic import configs_of_size, write_synthetic

SPEECH = Path(__file__).parents[2] / "src" / "lipcast" / "assets" / "tiny" / "wav2vec2-tiny"
PRECISIONS: tuple[StoredPrecision, ...] = ("bf16", "fp8", "int8", "int4")
RANK = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/lipcast-soak"))
    parser.add_argument("--lora", action="store_true", help="merge an adapter on every matrix")
    options = parser.parse_args()
    source = options.folder / "source"
    write_synthetic(source, configs_of_size(int(options.gigabytes * 1e9), dim=2560), speech=SPEECH)
    loras = (write_adapter(source, options.folder),) if options.lora else ()
    results = [measure(ConvertRequest(source, options.folder / p, p, loras)) for p in PRECISIONS]
    shutil.rmtree(options.folder)
    print(json.dumps(results))


def write_adapter(source: Path, folder: Path) -> LoraSpec:
    """A random adapter of the released rank on every matrix that is quantised."""
    base = open_tensors(find_checkpoint(source).dit or source)
    tensors = {}
    for info in base.infos.values():
        if kept_because(info) is None:
            layer = info.name.removesuffix(".weight")
            tensors[f"{layer}.lora_A.default.weight"] = torch.randn(RANK, info.shape[1]) * 0.01
            tensors[f"{layer}.lora_B.default.weight"] = torch.randn(info.shape[0], RANK) * 0.01
    save_file(tensors, folder / "adapter.safetensors")
    return LoraSpec(folder / "adapter.safetensors")


def measure(request: ConvertRequest) -> dict[str, Any]:
    """Convert in a fresh process; remove the result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(_convert, (request,))
    shutil.rmtree(request.out)
    print(
        f"{result['precision']:5} {result['seconds']:7.1f} s   result {result['gigabytes']:5.2f} GB   "
        f"largest tensor {result['largest_mb']:6.1f} MB   growth {result['growth_mb']:6.1f} MB   "
        f"weight error {result['weight_error']:.4f}   output error {result['output_error']:.4f}",
        flush=True,
    )
    return result


def _convert(request: ConvertRequest) -> dict[str, Any]:
    if request.precision in SCHEMES:
        quantise_layer("warm", torch.ones(64, 64), SCHEMES[request.precision])
    tensors = open_tensors(find_checkpoint(request.source).dit or request.source)
    largest_bytes = max(info.num_bytes for info in tensors.infos.values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
    before, began = _memory_bytes("VmRSS"), time.perf_counter()
    manifest = convert(request)
    seconds, growth_bytes = time.perf_counter() - began, _memory_bytes("VmHWM") - before
    verify(request.out)
    entries = manifest["files"].values()
    layers = [layer for entry in entries for layer in entry.get("layers", ())]
    return {
        "precision": request.precision,
        "seconds": round(seconds, 1),
        "gigabytes": round(sum(entry["bytes"] for entry in entries) / 1e9, 3),
        "largest_mb": round(largest_bytes / 1e6, 1),
        "growth_mb": round(growth_bytes / 1e6, 1),
        "growth_over_largest": round(growth_bytes / largest_bytes, 2),
        "weight_error": round(mean([layer["weight_error"] for layer in layers] or [0]), 5),
        "output_error": round(mean([layer["output_error"] for layer in layers] or [0]), 5),
    }


def _memory_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
