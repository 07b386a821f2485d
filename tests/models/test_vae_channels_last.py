"""The autoencoder laid out for a CPU against the model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import lipcast
from lipcast.config.models import VAEConfig
from lipcast.models import vae_kernels
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState
from lipcast.models.vae_channels_last import (
    ChannelsLastNetwork,
    ChannelsLastVAE,
    to_channels_last,
)
from lipcast.models.vae_kernels import ConvKernels, best_kernels
from lipcast.models.vae_receptive import Unit, latents_to_run, units_to_run
from profiles import examples

CONFIGS = {
    "official_shape": VAEConfig(dim=8),
    "sixteen": VAEConfig(dim=16, dim_mult=(1, 2, 2, 4), num_res_blocks=1),
    "odd_widths": VAEConfig(
        dim=12,
        dim_mult=(1, 2),
        temporal_downsample=(True,),
        z_dim=6,
        mean=(0.1, -0.2, 0.3, 0.0, 1.0, -1.0),
        std=(1.0, 2.0, 0.5, 1.0, 1.5, 1.0),
    ),
}
TINY = Path(lipcast.__file__).parent / "assets" / "tiny"
HEIGHT, WIDTH = 16, 40
BF16_RMS = 0.03
"""Root of the mean squared difference to float32, relative to the signal."""


def random_vae(config: VAEConfig) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(config)
    for name, parameter in vae.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        torch.nn.init.normal_(parameter, std=0.1 if "bias" in name else fan_in**-0.5)
        if "gamma" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=CONFIGS)
def vae(request):
    return random_vae(CONFIGS[request.param])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def kernels(request):
    return ConvKernels(request.param)


@pytest.fixture
def fast(vae, kernels) -> ChannelsLastVAE:
    return to_channels_last(vae, kernels)


def random_latent(config: VAEConfig, num_latents: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_latents)
    factor = config.spatial_factor
    shape = (1, config.z_dim, num_latents, HEIGHT // factor, WIDTH // factor)
    return torch.randn(shape, generator=generator)


def random_video(num_frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.rand(1, 3, num_frames, HEIGHT, WIDTH, generator=generator) * 2 - 1


def assert_same(fast: ChannelsLastVAE, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to rounding in float32; within bf16's error otherwise."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert isinstance(fast.decoder, ChannelsLastNetwork)
    if fast.decoder.dtype == torch.float32:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        return
    difference = (found - expected).square().mean().sqrt()
    assert difference < BF16_RMS * expected.square().mean().sqrt()


def test_decode_equals_the_model(vae, fast):
    latent = random_latent(vae.config, 4)
    assert_same(fast, fast.decode(latent), vae.decode(latent))


def test_encode_equals_the_model(vae, fast):
    video = random_video(4 * vae.config.temporal_factor + 1)
    assert_same(fast, fast.encode(video), vae.encode(video))


@pytest.mark.parametrize("num_frames", [1, 5, 41])
def test_still_picture_equals_the_model(vae, fast, num_frames):
    image = random_video(1)[:, :, 0]
    assert_same(fast, fast.encode_still(image, num_frames), vae.encode_still(image, num_frames))


def test_states_are_interchangeable(vae, fast):
    latent = random_latent(vae.config, 5)
    expected = vae.decode(latent)
    group = vae.config.temporal_factor
    for first, second in ((vae, fast), (fast, vae)):
        state = first.new_decoder_state()
        first.prime(latent[:, :, :3], state)
        stored = DecoderState({n: t.contiguous() for n, t in state.caches.items()})
        found = second.decode_chunk(latent[:, :, 3:], stored)
        assert_same(fast, found.float(), expected[:, :, -2 * group :])


def test_prime_leaves_the_state_of_decoding(vae, fast):
    for num_primed in (1, 7):
        latent = random_latent(vae.config, num_primed + 2)
        primed, decoded = fast.new_decoder_state(), fast.new_decoder_state()
        fast.prime(latent[:, :, :num_primed], primed)
        fast.decode_chunk(latent[:, :, :num_primed], decoded)
        rest = latent[:, :, num_primed:]
        assert torch.equal(fast.decode_chunk(rest, primed), fast.decode_chunk(rest, decoded))


@pytest.fixture(scope="module")
def fast_sixteen() -> ChannelsLastVAE:
    return to_channels_last(random_vae(CONFIGS["sixteen"]), best_kernels())


@settings(max_examples=examples(8), deadline=None)
@given(chunks=st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=4))
def test_any_chunking_gives_the_same_bits(fast_sixteen, chunks):
    latent = random_latent(fast_sixteen.config, sum(chunks))
    state = fast_sixteen.new_decoder_state()
    videos = [fast_sixteen.decode_chunk(z, state) for z in latent.split(chunks, dim=2)]
    assert torch.equal(torch.cat(videos, dim=2), fast_sixteen.decode(latent))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
    ids=["fp32", "bf16"],
)
def test_embedded_model_keeps_its_pictures(dtype):
    """bfloat16 costs the tiny model's pictures less than one step of 8-bit colour."""
    config = VAEConfig.from_json(json.loads((TINY / "vae_config.json").read_text()))
    vae = VideoVAE(config)
    vae.load_state_dict(load_file(TINY / "Wan2.1_VAE.safetensors"))
    vae.requires_grad_(False)
    axis = torch.linspace(-1, 1, 64)
    image = torch.stack([axis.expand(64, 64), axis.outer(axis), -axis.expand(64, 64).T])[None]
    latent = vae.encode_still(image, 9)
    error = to_channels_last(vae, ConvKernels(dtype)).decode(latent) - vae.decode(latent)
    assert error.square().mean().sqrt() < 1 / 255


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [((), torch.float32), (("avx2",), torch.float32), (("avx512_bf16",), torch.bfloat16)],
)
def test_bf16_is_chosen_where_the_processor_multiplies_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(vae_kernels, "processor_flags", lambda: flags)
    assert best_kernels().dtype == dtype


# The plan of priming


@given(
    num_convs=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    num_latents=st.integers(1, 30),
)
def test_priming_plan_sees_all_that_matters(num_convs, num_latents):
    """Followed backwards, frame by frame: whatever a unit must know was computed before."""
    rates = [2 ** (index // 2) for index in range(len(num_convs))]
    units = [Unit(rate, count) for rate, count in zip(rates, num_convs, strict=True)]
    counts = latents_to_run(units)
    assert counts == sorted(counts, reverse=True)
    needed = 0
    for index in reversed(range(len(units))):
        if index + 1 < len(units) and rates[index + 1] > rates[index]:
            needed = (needed + 1) // 2
        needed += 2 * num_convs[index]
        num_run = sum(
            units_to_run(counts, latent, num_latents) > index for latent in range(num_latents)
        )
        assert num_run * rates[index] >= min(needed, num_latents * rates[index])
    assert units_to_run(counts, 0, num_latents) == len(units)
