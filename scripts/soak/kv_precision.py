"""What the precision of the KV ring changes in the embedded model's video, against float32.

    python scripts/soak/kv_precision.py [--portraits 2] [--clips 2]

The model computes in float32; only keys and values are stored in fewer bits. With two clips the ring is
overwritten once: four blocks fill it, four more live on what it kept. Printed per precision: PSNR of
latents and frames (dB, mean and least of the videos; latents against their range), of the frames past
the window alone, the largest difference of a pixel, bytes of the rings. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import lipcast
from lipcast.config.precision import KVPrecision
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.backend import LocalBackend
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.models.dit import DiT
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.models.vae_kernels import best_kernels
from lipcast.weights.bundle import ModelBundle

EXAMPLES = Path(__file__).parents[2] / "examples"
VOICES = ("speech_b_male.wav", "speech_d_female.wav")
CASES: tuple[KVPrecision, ...] = ("bf16", "fp8", "int4")
WINDOW_FRAMES = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2)
    options = parser.parse_args()
    bundle = lipcast.load("tiny", device="cpu", precision="fp32").bundle
    bundle.vae = to_channels_last(bundle.vae, best_kernels())
    cases = [(f"portrait_{p}.png", VOICES[p % 2]) for p in range(options.portraits)]
    exact = [generate(bundle, image, voice, options.clips, "fp32") for image, voice in cases]
    rows = []
    for precision in CASES:
        videos = [
            generate(bundle, image, voice, options.clips, precision) for image, voice in cases
        ]
        rows.append({"ring": precision, "kv_bytes": videos[0][2], **compare(videos, exact)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps({"kv_bytes_fp32": exact[0][2], "rows": rows}))


Made = tuple[np.ndarray, np.ndarray, int]
"""Latents [C, F, H, W], frames, bytes of rings and sink."""


def generate(
    bundle: ModelBundle, image: str, voice: str, clips: int, precision: KVPrecision
) -> Made:
    executors = []

    def make_executor(dit: DiT, spec: VideoSpec, *rest: Any, **more: Any) -> LaneExecutor:
        plan = replace(SessionPlan.resident(dit.config.num_layers), kv_precision=precision)
        more["memory"].release()
        more["memory"] = SessionMemory(dit, session_shape(spec), DeviceContext.of(dit.device), plan)
        executors.append(LaneExecutor(dit, spec, *rest, **more))
        return executors[-1]

    model = lipcast.Lipcast(bundle, LocalBackend(bundle, make_executor=make_executor))
    latents: list[np.ndarray] = []
    with model.stream(image=EXAMPLES / image, audio=EXAMPLES / voice, num_clip=clips) as session:
        session.on_latent = lambda _block, latent: latents.append(latent.numpy().copy())
        frames = np.concatenate([block.frames for block in session])
    return np.concatenate(latents, axis=1), frames, executors[0].memory.num_bytes


def compare(videos: list[Made], exact: list[Made]) -> dict[str, Any]:
    pairs = list(zip(videos, exact, strict=True))
    latents = [psnr(a[0], b[0], float(np.ptp(b[0]))) for a, b in pairs]
    frames = [psnr(a[1], b[1], 255.0) for a, b in pairs]
    snapshot = [psnr(a[1][WINDOW_FRAMES:], b[1][WINDOW_FRAMES:], 255.0) for a, b in pairs]
    largest = max(int(np.abs(a[1].astype(int) - b[1]).max()) for a, b in pairs)
    named = {"latents": latents, "frames": frames, "frames_past_window": snapshot}
    figures = {
        f"{k}_db": [round(float(f(v)), 1) for f in (np.mean, np.min)] for k, v in named.items()
    }
    return {**figures, "largest": largest}


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """10 log10(peak² / mean squared error), in dB."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * np.log10(peak**2 / max(error, 1e-12))


if __name__ == "__main__":
    main()
