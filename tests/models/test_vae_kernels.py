"""The autoencoder's fused kernels against PyTorch's operators, in Triton's interpreter.

In float32 both agree to rounding. In bfloat16 the fused kernels round once where the operators round
after every step, so that they are compared with float32 of the same 16-bit numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton_interpreter  # before the kernels
from compiling import SHARED_BYTES, compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vae_channels_last import random_latent, random_vae
from torch import Tensor

from lipcast.config.models import VAEConfig
from lipcast.errors import UsageError
from lipcast.models.kernels import choice
from lipcast.models.kernels import vae as fused
from lipcast.models.kernels.choice import choose_conv_kernels
from lipcast.models.kernels.vae import FusedConvKernels, Tile
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_channels_last import ChannelsLastVAE, to_channels_last
from lipcast.models.vae_kernels import ConvKernels, ConvStep
from profiles import examples

assert triton_interpreter
SMALL_TILE = Tile(2, 8, 16, 16, 16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}
"""Relative to the largest number: sums in another order; one rounding to bfloat16."""


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step_of(in_channels: int, out_channels: int, **form: Any) -> ConvStep:
    taps = form.pop("taps", (3, 3, 3))
    weight = drawn(out_channels, in_channels, *taps, seed=1) / (in_channels * 9) ** 0.5
    return ConvStep("conv", weight, drawn(out_channels, seed=2) / 10, **form)


def gamma(channels: int) -> Tensor:
    return 1 + drawn(channels, seed=3) / 10


SPATIAL, TEMPORAL = {"taps": (1, 3, 3)}, {"taps": (3, 1, 1)}
STEPS = {
    "residual": step_of(16, 16, num_past=2, pad=1, gamma_I=gamma(16), residual=True),
    "wider": step_of(
        12, 32, num_past=2, pad=1, gamma_I=gamma(12), residual=True, shortcut_OI=drawn(32, 12, seed=4)
    ),
    "first": step_of(3, 8, num_past=2, pad=1),
    "head": step_of(20, 3, num_past=2, pad=1, gamma_I=gamma(20)),
    "picture doubled": step_of(16, 8, pad=1, up=True, **SPATIAL),
    "picture halved": step_of(8, 8, stride=2, **SPATIAL),
    "frames doubled": step_of(8, 16, num_past=2, doubles_frames=True, **TEMPORAL),
    "frames halved": step_of(8, 8, num_past=1, stride_t=2, **TEMPORAL),
}  # fmt: skip


def assert_near(
    found: Tensor, expected: Tensor, dtype: torch.dtype, *, num_roundings: int = 1
) -> None:
    assert found.shape == expected.shape and found.is_contiguous()
    tolerance = num_roundings * TOLERANCE[dtype]
    assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_its_plain_twin(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """With and without a past, with fewer frames than are asked for, at sizes that fill no tile."""
    monkeypatch.setattr(Tile, "of", lambda *_, large_shared: SMALL_TILE)
    kernels, step = FusedConvKernels(dtype), FusedConvKernels(dtype).pack(STEPS[name])
    exact, exact_step = ConvKernels(torch.float32), ConvKernels(torch.float32).pack(step)
    channels = step.weight_OITKK.shape[1]
    for num_frames, num_given, has_past in ((1, 1, True), (2, 1, False)):
        if num_frames + step.num_past < step.weight_OITKK.shape[2]:
            continue
        x = drawn(num_given, 2, 10, channels, seed=num_frames, dtype=dtype)
        past = drawn(step.num_past, 2, 10, channels, seed=9, dtype=dtype) if has_past else None
        found, kept = kernels.run([step], x, pasts=[past], num_frames=[num_frames], as_float=False)
        expected, expected_kept = exact.run(
            [exact_step], x.float(), pasts=[None if past is None else past.float()],
            num_frames=[num_frames], as_float=False,
        )  # fmt: skip
        assert found.dtype == dtype
        # Of the result; of what is activated before it; of the shortcut that is added.
        num_roundings = 1 + (step.gamma_I is not None) + (step.shortcut_OI is not None)
        assert_near(found, expected, dtype, num_roundings=num_roundings)
        if num_given == num_frames and step.num_past:
            assert_near(kept[0], expected_kept[0], dtype)


@settings(max_examples=examples(12))
@given(
    frames=st.integers(1, 3),
    channels=st.sampled_from([3, 16, 96]),
    magnitude=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 300.0]),
    num_kept=st.integers(0, 2),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_norm_and_silu(
    frames: int, channels: int, magnitude: float, num_kept: int, dtype: torch.dtype
) -> None:
    x = (drawn(frames, 3, 5, channels, seed=channels) * magnitude).to(dtype)
    weights, num_kept = gamma(channels).to(dtype), min(num_kept, frames)
    found, kept = fused.norm_silu(x, weights, num_kept)
    step = ConvStep("", torch.empty(1, channels, 1, 1, 1), torch.empty(1), weights.float())
    plain = ConvKernels(torch.float32)
    expected, _ = plain.activate(step, x.float(), past=None, num_frames=frames)
    assert_near(found, expected, dtype)
    assert torch.equal(kept, found[frames - num_kept :])


@given(in_channels=st.integers(1, 800), out_channels=st.integers(1, 800), large=st.booleans())
def test_tiles_cover_all_channels_and_fit_shared_memory(
    in_channels: int, out_channels: int, large: bool
) -> None:
    tile = Tile.of(in_channels, out_channels, large_shared=large)
    widths = [tile.BLOCK, tile.DEPTH, tile.TILE_H * tile.TILE_W, tile.TAIL or 16]
    assert all(width >= 16 and width & (width - 1) == 0 for width in widths)
    rows = tile.TILE_H * tile.TILE_W + tile.BLOCK + tile.TAIL
    limit = fused._LARGE_SHARED_BYTES if large else fused._LEAST_SHARED_BYTES
    assert 2 * rows * tile.DEPTH * fused.LAUNCH["num_stages"] <= limit
    programs = tile.programs(9, 17, out_channels)
    assert programs * tile.TILE_H * tile.TILE_W * (tile.BLOCK + tile.TAIL) >= 9 * 17 * out_channels


TWO_STAGES = VAEConfig(
    dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,), z_dim=3,
    mean=(0.1, -0.2, 0.3), std=(1.0, 2.0, 0.5),
)  # fmt: skip


@pytest.mark.slow
def test_a_whole_video_and_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks in interpreted kernels: near the model, and a stream has the bits of the whole."""
    monkeypatch.setattr(Tile, "of", lambda *_, large_shared: Tile(16, 16, 16, 0, 16))
    vae = random_vae(TWO_STAGES)
    fast = to_channels_last(vae, FusedConvKernels(torch.float32))
    latent = drawn(1, 3, 3, 4, 6, seed=0)
    whole = fast.decode(latent)
    torch.testing.assert_close(whole, vae.decode(latent), atol=2e-5, rtol=1e-5)
    state = fast.new_decoder_state()
    pieces = [fast.decode_chunk(z, state) for z in latent.split([2, 1], dim=2)]
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    image = drawn(1, 3, 8, 12, seed=1)
    found, expected = fast.encode_still(image, 9), vae.encode_still(image, 9)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


class BatchedKernels(ConvKernels):
    """PyTorch's operators, which take several latents at once as the fused kernels do."""

    any_batch = True


@pytest.fixture(scope="module")
def model() -> VideoVAE:
    return random_vae(VAEConfig(dim=8, num_res_blocks=1))


@pytest.fixture(scope="module")
def batched(model: VideoVAE) -> ChannelsLastVAE:
    return to_channels_last(model, BatchedKernels(torch.float32))


@pytest.mark.parametrize("chunks", [[5], [1, 4], [3, 2], [2, 1, 2]], ids=str)
def test_latents_go_together_while_the_picture_is_small(
    model: VideoVAE, batched: ChannelsLastVAE, chunks: list[int]
) -> None:
    latent = random_latent(model.config, 5)
    state = batched.new_decoder_state()
    videos = [batched.decode_chunk(z, state) for z in latent.split(chunks, dim=2)]
    torch.testing.assert_close(torch.cat(videos, dim=2), model.decode(latent), atol=2e-5, rtol=1e-5)


def test_a_batch_goes_on_from_primed_caches(model: VideoVAE, batched: ChannelsLastVAE) -> None:
    latent = random_latent(model.config, 6)
    state = batched.new_decoder_state()
    batched.prime(latent[:, :, :3], state)
    found = batched.decode_chunk(latent[:, :, 3:], state)
    expected = model.decode(latent)[:, :, -found.shape[2] :]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_convolutions_compile_for_every_gpu(capability: int) -> None:
    """Nearly nothing is spilled (4 bytes on sm_100), and shared memory suffices on every card."""
    kernels = compiled(
        "from lipcast.config.models import VAEConfig; from lipcast.lab import conv_compile",
        f"conv_compile.compile_convolutions(VAEConfig(), {capability})",
    )
    assert len(kernels) == 17
    for kernel in kernels:
        assert kernel["registers"] <= 255 and kernel["spilled_bytes"] <= 4, kernel
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability], kernel


@pytest.mark.parametrize("obstacle", ["", "Triton is not installed"])
def test_a_gpu_gets_the_fused_autoencoder(obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits, where Triton works and blocks have enough shared memory, unless told otherwise."""
    gpu, shared = torch.device("cuda:0"), 99 << 10
    monkeypatch.setattr(choice, "triton_obstacle", lambda _: obstacle)
    monkeypatch.setattr(fused, "_shared_bytes", lambda _: shared)
    chosen = choose_conv_kernels("auto", gpu, torch.bfloat16)
    assert isinstance(chosen, FusedConvKernels) is (not obstacle)
    assert choose_conv_kernels("plain", gpu, torch.bfloat16) is None
    assert choose_conv_kernels("auto", gpu, torch.float32) is None
    assert choose_conv_kernels("auto", torch.device("cpu"), torch.bfloat16) is None
    shared = 64 << 10
    assert choose_conv_kernels("auto", gpu, torch.bfloat16) is None
    with pytest.raises(UsageError, match="choose auto or plain"):
        choose_conv_kernels("triton", gpu, torch.bfloat16)
