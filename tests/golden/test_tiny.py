"""The embedded model against the reference run of its own weights.

LIPCAST_TINY_GOLDEN names another file with the same tensors (the full one has every frame).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from golden_helpers import DEFAULT_DIR, Driver, GoldenCase

from lipcast.config.timesteps import flow_schedule
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE
from lipcast.weights.checkpoint import checkpoint_dir, find_checkpoint
from lipcast.weights.configs import read_configs
from lipcast.weights.files import open_tensors
from lipcast.weights.load import load_into, without_memory


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return GoldenCase(
        Path(os.environ.get("LIPCAST_TINY_GOLDEN", DEFAULT_DIR / "tiny_golden.safetensors"))
    )


@pytest.fixture(scope="module")
def files():
    return find_checkpoint(checkpoint_dir("tiny"))


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "half"), [("latents", True), ("latents_exact_rope", False)])
@torch.no_grad()
def test_latents(case, files, name, half):
    config = read_configs("tiny").dit
    with without_memory():
        model = DiT(config, half_precision_rope=half)
    load_into(model, open_tensors(files.dit), dtype=torch.float32)
    model.requires_grad_(False)
    flow = flow_schedule(config.sample_steps, shift=config.sample_shift)
    expected = case[name][0]
    driver = Driver(model, case["context"][0], tuple(expected.shape[-2:]), 12, list(flow.timesteps))
    sink = driver.new_sink()
    model.prefill(case["ref_latent"][0], case["motion_latents"][0], driver.text, sink)
    for b in range(expected.shape[1] // 3):
        x = case["noise"][0, :, 3 * b : 3 * b + 3]
        features = case["audio_feats"][..., 12 * b : 12 * b + 12]
        for step in range(flow.num_steps):
            v = driver.velocity(
                x, block=b, step=step, sink=sink,
                distance=int(case["cond_distance"][b, step]), features=features,
            )  # fmt: skip
            x = x + (flow.sigmas[step + 1] - flow.sigmas[step]) * v
        assert _relative(x, expected[:, 3 * b : 3 * b + 3]) < 1e-4, b


@pytest.mark.slow
@torch.no_grad()
def test_frames(case, files):
    config = read_configs("tiny").vae
    with without_memory():
        vae = VideoVAE(config)
    load_into(vae, open_tensors(files.vae), dtype=torch.float32)
    state = vae.new_decoder_state()
    vae.prime(vae.encode_still(case["image"], 9), state)
    video = vae.decode_chunk(case["latents"][:, :, :3], state)[0]
    frames = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).transpose(0, 1)
    index = case.meta.get("frame_index", range(len(case["frames_u8"])))
    for i, frame in zip(index, case["frames_u8"], strict=True):
        if i >= len(frames):
            break
        assert (frames[i].int() - frame.int()).abs().max() <= 1, i
