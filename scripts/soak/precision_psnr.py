"""What each precision changes in the embedded model's video, against float32.

    python scripts/soak/precision_psnr.py [--portraits 2] [--clips 1]

The checkpoint is converted to each precision and generates the same videos; only the transformer's
weights differ. fp8+ multiplies 8-bit activations by 8-bit weights as a GPU does; fp8 alone rounds the
weights only. Printed per precision: PSNR of the frames (dB, mean and least of the videos), the
largest difference of a pixel, size of the weights, mean error of a layer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lipcast
from lipcast.config.precision import StoredPrecision
from lipcast.weights.checkpoint import find_checkpoint
from lipcast.weights.convert import ConvertRequest, convert
from lipcast.weights.files import open_tensors
from lipcast.weights.quant_linear import use_direct_products

ROOT = Path(__file__).parents[2]
TINY = ROOT / "src" / "lipcast" / "assets" / "tiny"
VOICES = ("speech_b_male.wav", "speech_d_female.wav")
CASES: tuple[tuple[str, StoredPrecision], ...] = (
    ("fp16", "fp16"), ("bf16", "bf16"), ("int8", "int8"), ("fp8", "fp8"), ("fp8+", "fp8"),
    ("int4", "int4"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1)
    options = parser.parse_args()
    videos = [(f"portrait_{p}.png", VOICES[p % 2]) for p in range(options.portraits)]
    exact = generate(TINY, videos, options.clips)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for label, precision in CASES:
            out = Path(folder) / label
            manifest = convert(ConvertRequest(TINY, out, precision))
            frames = generate(out, videos, options.clips, fp8_matmul=label == "fp8+")
            results.append({"precision": label, **compare(frames, exact), **weights(out, manifest)})
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    print(json.dumps(results))


def generate(
    directory: Path, videos: list[tuple[str, str]], clips: int, *, fp8_matmul: bool = False
) -> list[NDArray[np.uint8]]:
    model = lipcast.load(directory, device="cpu", precision="fp32")
    use_direct_products(model.bundle.dit, enabled=fp8_matmul)
    return [
        model.generate(
            image=ROOT / "examples" / image, audio=ROOT / "examples" / audio, num_clip=clips
        ).frames
        for image, audio in videos
    ]


def compare(frames: list[NDArray[np.uint8]], exact: list[NDArray[np.uint8]]) -> dict[str, Any]:
    differences = [a.astype(np.float64) - b for a, b in zip(frames, exact, strict=True)]
    psnr = [10 * np.log10(255**2 / max(1e-9, np.mean(d**2))) for d in differences]
    return {
        "psnr_db": round(float(np.mean(psnr)), 1),
        "least_db": round(float(np.min(psnr)), 1),
        "largest": int(max(np.abs(d).max() for d in differences)),
    }


def weights(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    layers = [e for file in manifest["files"].values() for e in file.get("layers", ())]
    errors = [layer["weight_error"] for layer in layers]
    source = open_tensors(find_checkpoint(directory).dit or directory)
    return {
        "dit_mb": round(source.num_bytes / 1e6, 2),
        "layer_error": round(float(np.mean(errors)), 5) if errors else 0.0,
    }


if __name__ == "__main__":
    main()
