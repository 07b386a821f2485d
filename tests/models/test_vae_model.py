"""The video autoencoder on small random weights: streaming, state, still pictures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcast.config.models import VAEConfig
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState
from lipcast.weights.load import without_memory
from profiles import examples

CONFIGS = {
    "official_shape": VAEConfig(dim=4),
    "narrow_middle": VAEConfig(dim=4, dim_mult=(1, 2, 2, 4), num_res_blocks=1),
    "two_scales": VAEConfig(dim=4, dim_mult=(1, 2, 2), temporal_downsample=(True, False)),
}
HEIGHT, WIDTH = 16, 24


def random_vae(config: VAEConfig) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=CONFIGS)
def vae(request):
    return random_vae(CONFIGS[request.param])


@pytest.fixture(scope="module")
def small_vae():
    return random_vae(CONFIGS["narrow_middle"])


def random_latent(config: VAEConfig, num_latents: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_latents)
    factor = config.spatial_factor
    shape = (1, config.z_dim, num_latents, HEIGHT // factor, WIDTH // factor)
    return torch.randn(shape, generator=generator)


def test_frame_counts(vae):
    group = vae.config.temporal_factor
    state = vae.new_decoder_state()
    latent = random_latent(vae.config, 6)
    counts = [vae.decode_chunk(z, state).shape[2] for z in latent.split([1, 3, 2], dim=2)]
    assert counts == [1, 3 * group, 2 * group]
    video = torch.zeros(1, 3, 2 * group + 3, HEIGHT, WIDTH)
    assert vae.encode(video).shape[2] == 1 + (2 * group + 2) // group


@settings(max_examples=examples(12), deadline=None)
@given(chunks=st.lists(st.sampled_from([1, 2, 3, 4, 7]), min_size=1, max_size=4))
def test_any_chunking_gives_the_same_bits(small_vae, chunks):
    latent = random_latent(small_vae.config, sum(chunks))
    state = small_vae.new_decoder_state()
    videos = [small_vae.decode_chunk(z, state) for z in latent.split(chunks, dim=2)]
    assert torch.equal(torch.cat(videos, dim=2), small_vae.decode(latent))


def test_every_latent_enters_alone(monkeypatch, small_vae):
    """Kernels that are chosen by the number of frames must not see how a stream was cut."""
    shapes, convolve = set(), small_vae.conv2.forward

    def recording(z_BCTHW):
        shapes.add((z_BCTHW.shape, z_BCTHW.stride()))
        return convolve(z_BCTHW)

    monkeypatch.setattr(small_vae.conv2, "forward", recording)
    latent = random_latent(small_vae.config, 5)
    state = small_vae.new_decoder_state()
    small_vae.prime(latent[:, :, :3], state)
    small_vae.decode_chunk(latent[:, :, 3:], state)
    small_vae.decode(latent[:, :, :1].contiguous())
    assert len(shapes) == 1


def test_state_survives_storage(vae):
    latent = random_latent(vae.config, 5)
    state = vae.new_decoder_state()
    vae.decode_chunk(latent[:, :, :2], state)
    stored = {name: cache.contiguous().clone() for name, cache in state.caches.items()}
    expected = vae.decode_chunk(latent[:, :, 2:], state)
    restored = DecoderState(stored)
    assert torch.equal(vae.decode_chunk(latent[:, :, 2:], restored), expected)


def test_state_stays_the_same_size(small_vae):
    state = small_vae.new_decoder_state()
    assert state.num_bytes == 0
    small_vae.decode_chunk(random_latent(small_vae.config, 2), state)
    after_two = state.num_bytes
    assert after_two == sum(t.nbytes for t in state.caches.values()) > 0
    small_vae.decode_chunk(random_latent(small_vae.config, 5), state)
    assert state.num_bytes == after_two


def test_forward_leaves_no_trace_on_the_module(small_vae):
    before = {name: dict(vars(module)) for name, module in small_vae.named_modules()}
    latent = random_latent(small_vae.config, 2)
    first = small_vae.decode(latent)
    small_vae.encode(first)
    assert {name: dict(vars(module)) for name, module in small_vae.named_modules()} == before
    assert torch.equal(small_vae.decode(latent), first)


def test_prime_is_decode_without_the_pictures(vae):
    latent = random_latent(vae.config, 6)
    primed, decoded = vae.new_decoder_state(), vae.new_decoder_state()
    vae.prime(latent[:, :, :4], primed)
    vae.decode_chunk(latent[:, :, :4], decoded)
    rest = latent[:, :, 4:]
    assert torch.equal(vae.decode_chunk(rest, primed), vae.decode_chunk(rest, decoded))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 9, 41, 73])
def test_still_picture_equals_the_repeated_picture(vae, num_frames):
    torch.manual_seed(num_frames)
    image = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    slow = vae.encode(image.unsqueeze(2).repeat(1, 1, num_frames, 1, 1))
    fast = vae.encode_still(image, num_frames)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_bf16_runs_and_is_near(small_vae):
    latent = random_latent(small_vae.config, 3)
    half = random_vae(small_vae.config).bfloat16()
    near = half.decode(latent)
    assert near.dtype == torch.bfloat16
    exact = small_vae.decode(latent)
    assert (near.float() - exact).square().mean().sqrt() < 0.02


def test_published_names_and_sizes():
    """The published model: number of parameters, and one tensor of every kind of layer."""
    with without_memory():
        vae = VideoVAE(VAEConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert len(shapes) == 194
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    expected = {
        "encoder.downsamples.8.time_conv.weight": (384, 384, 3, 1, 1),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.residual.2.weight": (384, 192, 3, 3, 3),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.middle.1.norm.gamma": (384, 1, 1),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected
