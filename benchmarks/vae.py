"""The autoencoder on a CPU: seconds per block of 12 frames, by way of computing and by part.

Prints its conditions, then tables; the last line of stdout is one JSON document. Every figure is
the median of rounds in which all ways take turns, so that they share what else the machine does.

    python benchmarks/vae.py [--threads 2] [--rounds 5] [--model DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import lipcast
from lipcast.config.models import VAEConfig
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_channels_last import ChannelsLastDecoder, ChannelsLastVAE, to_channels_last
from lipcast.models.vae_kernels import ConvKernels

TINY = Path(lipcast.__file__).parent / "assets" / "tiny"
LATENTS_PER_BLOCK = 3
PRIMED = 7
STILL_FRAMES = 73
PICTURE_SIZE = 256


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    vae = load(options.model)
    conditions = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "rounds": options.rounds,
        "load_average": Path("/proc/loadavg").read_text().split()[0],
        "picture": [PICTURE_SIZE, PICTURE_SIZE],
    }
    print(conditions)
    ways = make_ways(vae)
    document = {"conditions": conditions, "ways": compare(ways, vae, options.rounds)}
    fastest = list(ways.values())[-1]
    if isinstance(fastest, ChannelsLastVAE):
        document["parts_of_decoder_ms"] = time_parts(fastest, options.rounds)
    print(json.dumps(document))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=TINY)
    return parser.parse_args()


def load(directory: Path) -> VideoVAE:
    config = VAEConfig.from_json(json.loads((directory / "vae_config.json").read_text()))
    vae = VideoVAE(config)
    vae.load_state_dict(load_file(directory / "Wan2.1_VAE.safetensors"))
    return vae.eval().requires_grad_(False)


def make_ways(vae: VideoVAE) -> dict[str, VideoVAE]:
    """Every way of computing, the model itself first, the fastest last."""
    ways: dict[str, VideoVAE] = {"model fp32": vae}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        ways[f"torch kernels {name}"] = to_channels_last(vae, ConvKernels(dtype))
    return ways


def compare(ways: dict[str, VideoVAE], vae: VideoVAE, rounds: int) -> dict[str, Any]:
    image = portrait_like()
    still = vae.encode_still(image, STILL_FRAMES)
    latents = vae.encode(moving(image, 4 * LATENTS_PER_BLOCK + 1))[:, :, 1:]
    results: dict[str, dict[str, Any]] = {name: {} for name in ways}
    reference = decode_after(vae, still, latents)
    for name, way in ways.items():
        results[name]["frames_psnr_db"] = psnr(decode_after(way, still, latents), reference)
    jobs: dict[str, Callable[[VideoVAE], Callable[[], object]]] = {
        "decode_block_s": lambda way: block_job(way, still, latents),
        "prime_s": lambda way: lambda: way.prime(still[:, :, :PRIMED], way.new_decoder_state()),
        "encode_still_s": lambda way: lambda: way.encode_still(image, STILL_FRAMES),
    }
    for job_name, job in jobs.items():
        times = take_turns({name: job(way) for name, way in ways.items()}, rounds)
        for name, seconds in times.items():
            results[name][job_name] = round(median(seconds), 4)
            results[name][job_name.removesuffix("_s") + "_best_s"] = round(min(seconds), 4)
    for name, values in results.items():
        print(f"{name:24}", *(f"{key} {value}" for key, value in values.items()), sep="  ")
    return results


def block_job(way: VideoVAE, still: Tensor, latents: Tensor) -> Callable[[], object]:
    state = way.new_decoder_state()
    way.prime(still[:, :, :PRIMED], state)
    return lambda: way.decode_chunk(latents[:, :, :LATENTS_PER_BLOCK], state)


def take_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_index in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if round_index:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def time_parts(way: ChannelsLastVAE, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per block in each part of the decoder, the best of the rounds."""
    decoder = way.decoder
    assert isinstance(decoder, ChannelsLastDecoder)
    state = way.new_decoder_state()
    shape = (1, way.config.z_dim, 1, PICTURE_SIZE // 8, PICTURE_SIZE // 8)
    latent = torch.zeros(shape)
    decoder(latent, state)
    rows: list[dict[str, Any]] = []
    for round_index in range(rounds + 1):
        x_THWC = decoder.enter(latent)
        for index, part in enumerate(decoder.parts):
            start = time.perf_counter()
            x_THWC = part.stream(x_THWC, state, len(part.num_convs))
            spent = (time.perf_counter() - start) * 1e3 * LATENTS_PER_BLOCK
            if round_index == 0:
                name = f"{index} {type(part).__name__}"
                rows.append({"part": name, "out_THWC": list(x_THWC.shape), "ms": spent})
            rows[index]["ms"] = round(min(rows[index]["ms"], spent), 2)
    for row in rows:
        print(f"{row['part']:16} {row['out_THWC']!s:22} {row['ms']:8.2f} ms per block")
    return rows


def decode_after(way: VideoVAE, still: Tensor, latents: Tensor) -> Tensor:
    state = way.new_decoder_state()
    way.prime(still[:, :, :PRIMED], state)
    return way.decode_chunk(latents, state)


def psnr(found: Tensor, reference: Tensor) -> float:
    """Of pictures in [-1, 1], in dB; 200 where they are equal."""
    error = (found - reference).square().mean().item()
    return round(10 * math.log10(4 / max(error, 4e-20)), 1)


def portrait_like() -> Tensor:
    """A face-like blob before a gradient: [1, 3, H, W] in [-1, 1]."""
    axis = torch.linspace(-1, 1, PICTURE_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    face = torch.sigmoid(20 * (0.5 - (x**2 + 0.7 * y**2).sqrt()))
    return torch.stack([face - 0.2, 0.6 * face + 0.3 * y, 0.4 * x - 0.3 * face])[None].clamp(-1, 1)


def moving(image: Tensor, num_frames: int) -> Tensor:
    frames = [torch.roll(image, shift, dims=-1) for shift in range(num_frames)]
    return torch.stack(frames, dim=2)


if __name__ == "__main__":
    main()
