"""What leaving out the last denoising evaluation costs: PSNR against all steps.

    .venv/bin/python benchmarks/fold_last_step.py [--clips 1]

Every portrait with every voice of examples/, same seed, with and without `fold_last_step`.
Prints a row a pair; the last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lipcast
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.models.vae_kernels import best_kernels

EXAMPLES = Path(__file__).parents[1] / "examples"
VOICES = ("speech_b_male", "speech_d_female")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1, help="length of each video in clips of 48")
    clips = parser.parse_args().clips
    model = lipcast.load("tiny", device="cpu", precision="fp32")
    model.bundle.vae = to_channels_last(model.bundle.vae, best_kernels())
    print(f"{'portrait':<14}{'voice':<18}{'latents dB':>11}{'frames dB':>11}{'largest':>9}")
    rows = []
    for portrait in sorted(EXAMPLES.glob("portrait_*.png")):
        for voice in VOICES:
            rows.append(compare(model, portrait, voice, clips))
            row = rows[-1]
            print(
                f"{portrait.stem:<14}{voice:<18}{row['latents_db']:11.1f}{row['frames_db']:11.1f}"
                f"{row['largest_difference']:9d}",
                flush=True,
            )
    summary = {
        key: {"min": min(r[key] for r in rows), "median": statistics.median(r[key] for r in rows)}
        for key in ("latents_db", "frames_db")
    }
    conditions = {"model": "tiny", "precision": "fp32", "torch": torch.__version__, "clips": clips}
    print(json.dumps({"conditions": conditions, "summary": summary, "rows": rows}))


def compare(model: lipcast.Lipcast, portrait: Path, voice: str, clips: int) -> dict[str, Any]:
    """One pair: all steps against one fewer."""
    (full, full_frames), (fold, fold_frames) = (
        run(model, portrait, voice, clips, fold=fold) for fold in (False, True)
    )
    difference = np.abs(full_frames.astype(int) - fold_frames.astype(int))
    return {
        "portrait": portrait.stem,
        "voice": voice,
        "latents_db": psnr(full, fold, float(full.max() - full.min())),
        "frames_db": psnr(full_frames, fold_frames, 255.0),
        "largest_difference": int(difference.max()),
    }


def run(
    model: lipcast.Lipcast, portrait: Path, voice: str, clips: int, *, fold: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and frames of one video."""
    latents: list[np.ndarray] = []
    with model.stream(
        image=portrait,
        audio=EXAMPLES / f"{voice}.wav",
        prompt="a person is talking, calm",
        num_clip=clips,
        fold_last_step=fold,
    ) as session:
        session.on_latent = lambda _block, latent: latents.append(latent.cpu().numpy().copy())
        frames = np.concatenate([block.frames for block in session])
    return np.concatenate(latents, axis=1), frames


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """10 log10(peak² / mean squared error), in dB."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)


if __name__ == "__main__":
    main()
