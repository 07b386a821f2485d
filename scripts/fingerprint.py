"""Print hashes of five fixed requests: latents, frames, sound and the pictures of the MP4 file.

Run it before and after a change that must not alter what is generated; equal lines mean equal bits. Sums
are rounded by the number of threads and by the processor, so compare on one machine and set
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av

import lipcast
from lipcast.api import save_blocks

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = MappingProxyType({"size": "128*128", "infer_frames": 16, "num_clip": 2})
REQUESTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {**SMALL}),
    "wavefront of 3 steps": ({}, {**SMALL, "schedule": "wavefront", "sample_steps": 3}),
    "streamed": ({"vram": "1GB", "offload_model": True, "offload_kv_cache": True}, {**SMALL}),
    "int8, fp8 KV cache": ({"vram": "1GB", "precision": "int8", "kv_precision": "fp8"}, {**SMALL}),
    "2 processes": ({"gpus": 2}, {**SMALL, "swap_reference": False}),
}


def fingerprint(load: dict[str, Any], options: dict[str, Any], path: Path) -> dict[str, str]:
    """Return the hashes of one request, in hexadecimal."""
    hashes = {name: hashlib.sha256() for name in ("latents", "frames", "sound", "mp4")}
    with lipcast.load("tiny", device="cpu", **load) as model:
        session = model.stream(
            image=EXAMPLES / "portrait_0.png",
            audio=EXAMPLES / "speech_b_male.wav",
            prompt="calm",
            **options,
        )
        session.on_latent = lambda _, latent: hashes["latents"].update(
            latent.detach().cpu().float().contiguous().numpy().tobytes()
        )
        for block in save_blocks(session, path):
            hashes["frames"].update(block.frames.tobytes())
            hashes["sound"].update(block.audio.tobytes())
        session.close()
    for picture in _pictures(path):
        hashes["mp4"].update(picture)
    return {name: digest.hexdigest()[:16] for name, digest in hashes.items()}


def _pictures(path: Path) -> Iterator[bytes]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").tobytes()


def main() -> None:
    """Print one JSON line per request."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (load, options) in REQUESTS.items():
            found = fingerprint(load, options, Path(folder) / "video.mp4")
            print(json.dumps({"request": name, **found}), flush=True)


if __name__ == "__main__":
    main()
