"""Every path of the engine on fake CUDA tensors of true widths: no device, no dtype is mixed up.

Fake tensors raise where a GPU would: for operands on two devices, of two dtypes, of wrong shapes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_videos import TWO_LAYERS, VAE, Placed, latent_shape, opened, run_blocks

from lipcast.config.models import SAMPLE_RATE, TextConfig
from lipcast.engine.decode import FrameDecoder
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.lab.fake_cuda import DEVICE, fake_cuda
from lipcast.lab.gpu_work import default_spec, fake_reference, fake_vae, put_on_device
from lipcast.models.speech import SpeechConfig, SpeechEncoder, interpolate
from lipcast.models.text import TextEncoder
from lipcast.weights.load import without_memory

WAV2VEC2 = {
    "model_type": "wav2vec2", "hidden_size": 1024, "num_hidden_layers": 2, "intermediate_size": 4096,
    "num_attention_heads": 16, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_bias": True,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_dim": [512] * 7, "num_conv_pos_embeddings": 128,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
BLOCKS = 2
"""The ring wraps in the second block, which begins with a new reference."""

PLACED = {
    "bf16, resident": Placed(),
    "int8 weights, fp8 rings": Placed("int8", kv_precision="fp8"),
    "int4 weights, int4 rings": Placed("int4", kv_precision="int4"),
    "wavefront, all streamed": Placed("fp8", "pinned", "pinned", "fp8", True, 3),
}
MORE = {
    "fp8 weights": Placed("fp8"),
    "streamed weights": Placed("fp8", weights="pinned"),
    "streamed rings": Placed(rings="pinned", sink_streamed=True),
    "streamed int4 rings": Placed(rings="pinned", kv_precision="int4"),
    "wavefront, resident": Placed("fp8", num_lanes=3),
    "wavefront, int4": Placed("int4", "pinned", "resident", "int4", True, 3),
}
ALL = {**PLACED, **MORE}


@pytest.mark.parametrize(
    "name", [*PLACED, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_blocks_are_made_on_the_device(name: str) -> None:
    with fake_cuda(), opened(ALL[name]) as (executor, spec):
        blocks = run_blocks(executor, spec, count=BLOCKS)
    assert len(blocks) >= BLOCKS
    for latent in blocks:
        assert (latent.device, latent.dtype) == (DEVICE, torch.float32)
        assert tuple(latent.shape) == latent_shape(spec)


def test_memory_moves_while_a_video_runs() -> None:
    """To host memory, back, and into another precision."""
    plans = Placed(rings="pinned", kv_precision="fp8", sink_streamed=True), Placed()
    with fake_cuda(), opened(Placed()) as (executor, spec):
        run_blocks(executor, spec, count=1)
        for block, placed in enumerate(plans, 1):
            executor.apply_plan(placed.session_plan(TWO_LAYERS))
            blocks = run_blocks(executor, spec, count=1, first_block=block)
            assert blocks[0].device == DEVICE


@pytest.mark.parametrize("tiles", [None, (1, 2)], ids=["whole", "tiled"])
def test_frames_are_decoded_on_the_device(tiles: tuple[int, int] | None) -> None:
    spec = default_spec(TWO_LAYERS)
    with fake_vae(VAE) as vae:
        decoder = vae if tiles is None else TiledDecoder(vae, tiles, park=True)
        frames = FrameDecoder(decoder, fake_reference(spec, TWO_LAYERS))
        pixels = frames.submit(torch.empty(latent_shape(spec), device=DEVICE)).collect()
    assert pixels.shape == (12, spec.geometry.height, spec.geometry.width, 3)


def test_a_portrait_is_encoded_on_the_device() -> None:
    spec = default_spec(TWO_LAYERS)
    with fake_vae(VAE) as vae:
        image = torch.empty(1, 3, spec.geometry.height, spec.geometry.width, device=DEVICE)
        still = vae.encode_still(image, TWO_LAYERS.motion_frames)
        video = vae.encode(image[:, :, None].expand(-1, -1, 5, -1, -1))
    assert (still.device, still.shape[2]) == (DEVICE, TWO_LAYERS.motion_latents)
    assert (video.device, video.shape[2]) == (DEVICE, 2)


def test_speech_is_encoded_on_the_device() -> None:
    """The published encoder's widths, two of its layers; a second of sound and its 25 frames."""
    with fake_cuda():
        with without_memory():
            encoder = SpeechEncoder(SpeechConfig.from_json(WAV2VEC2))
        put_on_device(encoder, torch.float32)
        with torch.inference_mode():
            features = encoder(torch.empty(SAMPLE_RATE, device=DEVICE))
            position = torch.arange(25, dtype=torch.float64) * 2
            frames = interpolate(features, position.to(DEVICE))
    assert (frames.device, tuple(frames.shape)) == (DEVICE, (3, 25, 1024))


def test_a_prompt_is_encoded_on_the_device() -> None:
    """The published encoder's widths, two of its layers."""
    with fake_cuda():
        with without_memory():
            encoder = TextEncoder(replace(TextConfig(), num_layers=2))
        put_on_device(encoder, torch.bfloat16)
        with torch.inference_mode():
            context = encoder(torch.zeros(1, 20, dtype=torch.long, device=DEVICE))
    assert (context.device, tuple(context.shape)) == (DEVICE, (1, 20, 4096))
