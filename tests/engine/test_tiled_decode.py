"""Decoding tile by tile against decoding whole pictures, with the embedded autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lipcast
from lipcast.config.tiles import tile_length, tile_starts
from lipcast.engine import tiled_decode
from lipcast.engine.decode import StreamingDecoder
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.media.image import fit_portrait, load_portrait
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState
from lipcast.planning import sizes
from profiles import examples
from sounds import EXAMPLES

HEIGHT, WIDTH = 48, 288
WIDE = (1, 2)
"""A grid whose two tiles are 26 of 36 latent pixels wide."""


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    return lipcast.load("tiny", device="cpu", precision="fp32").bundle.vae


@pytest.fixture(scope="module")
def latent(vae: VideoVAE) -> Tensor:
    """Two latent frames of a portrait."""
    pixels = fit_portrait(load_portrait(EXAMPLES / "portrait_0.png"), HEIGHT, WIDTH)
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        return vae.encode_still(image, 5).float()


@pytest.fixture(scope="module")
def whole(vae: VideoVAE, latent: Tensor) -> Tensor:
    with torch.inference_mode():
        return vae.decode(latent)


@pytest.fixture(scope="module")
def tiled(vae: VideoVAE, latent: Tensor) -> tuple[Tensor, DecoderState]:
    """(video, state) of two tiles side by side."""
    return decode_tiled(vae, latent, WIDE)


@torch.inference_mode()
def decode_tiled(
    vae: StreamingDecoder, latent: Tensor, grid: tuple[int, int], *, park: bool = False
) -> tuple[Tensor, DecoderState]:
    """(video, state), decoded one latent frame a call."""
    tiled = TiledDecoder(vae, grid, park=park)
    state = tiled.new_decoder_state()
    chunks = [tiled.decode_chunk(z, state) for z in latent.split(1, dim=2)]
    return torch.cat(chunks, dim=2), state


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of pixels in [-1, 1]."""
    error = float((a - b).square().mean())
    return float(10 * np.log10(4 / max(error, 1e-12)))


def test_one_tile_is_the_decoder_itself(vae, latent, whole):
    video, _ = decode_tiled(vae, latent, (1, 1))
    assert torch.equal(video, whole)


def test_tiles_look_like_the_whole(tiled, whole):
    """Measured: 57 to 60 dB; 54 dB at the edge of a tile, 60 to 65 dB far from it. What remains there
    is the attention in the middle of the decoder, which sees a tile instead of the picture."""
    video, _ = tiled
    assert video.shape == whole.shape
    assert psnr(video, whole) >= 50
    for columns in range(0, WIDTH, 32):
        patch = ..., slice(columns, columns + 32)
        assert psnr(video[patch], whole[patch]) >= 45, columns


def test_no_seam_shows(tiled, whole):
    """Where a tile begins or ends, the picture changes as it does in the columns beside."""
    video, _ = tiled
    steps = video.diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))
    errors = (video - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))
    length, starts = (f(WIDTH // 8, 2) for f in (tile_length, tile_starts))
    for edge in (8 * starts[1], 8 * length):
        near = torch.cat((steps[edge - 25 : edge - 1], steps[edge : edge + 24]))
        assert steps[edge - 1] <= near.max()
        assert errors[edge - 1] <= 0.1 * steps.mean()


def test_state_is_that_of_the_tiles(vae, latent, tiled):
    video, state = tiled
    tile = HEIGHT // 8, tile_length(WIDTH // 8, 2)
    expected = 2 * sizes.decoder_state_bytes(vae.config, *tile, precision="fp32")
    assert state.num_bytes == expected
    parked_video, parked = decode_tiled(vae, latent, WIDE, park=True)
    assert parked.num_bytes == expected and torch.equal(parked_video, video)


@pytest.mark.parametrize("park", [False, True])
def test_a_failed_chunk_can_be_made_again(latent, park):
    """As long as somebody holds the caches of before."""
    tiles, state = TiledDecoder(Zoom(1), WIDE, park=park), DecoderState()
    first = tiles.decode_chunk(latent, state)
    before = dict(state.caches)
    second = tiles.decode_chunk(latent, state)
    again = tiles.decode_chunk(latent, DecoderState(before))
    assert torch.equal(again, second) and not torch.equal(again, first)


class Zoom:
    """A decoder whose pixels are the latents, magnified; its state counts frames."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def new_decoder_state(self) -> DecoderState:
        return DecoderState()

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        seen = state.caches.get("seen", torch.zeros(()))
        state.caches["seen"] = seen + latent_BCTHW.shape[2]

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        self.prime(latent_BCTHW, state)
        zoomed = latent_BCTHW.repeat_interleave(self.factor, -1)
        return zoomed.repeat_interleave(self.factor, -2) + state.caches["seen"]


@settings(max_examples=examples(60), deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 2), st.tuples(*[st.integers(1, 6)] * 2), st.booleans())
def test_any_grid_puts_the_picture_together(
    sides: tuple[int, int], grid: tuple[int, int], park: bool
) -> None:
    """Also sizes that do not divide: every pixel in its place, weights that add up to one."""
    latent = torch.randn(1, 3, 2, *sides, generator=torch.Generator().manual_seed(0))
    decoder = Zoom(2)
    tiles, state = TiledDecoder(decoder, grid, park=park), DecoderState()
    tiles.prime(latent, state)
    video = tiles.decode_chunk(latent, state)
    expected = decoder.decode_chunk(latent, DecoderState({"seen": torch.tensor(2.0)}))
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-5)


def test_the_layout_for_a_cpu_in_tiles(tiny, latent):
    """The fast autoencoder has its own kernels; tiles are pictures to it like any other."""
    square = torch.cat((latent, latent), dim=-2)[..., :20]
    video, _ = decode_tiled(tiny.bundle.vae, square, (2, 2))
    with torch.inference_mode():
        assert psnr(video, tiny.bundle.vae.decode(square)) >= 40


def test_a_parked_cache_keeps_its_order_of_axes() -> None:
    """Channels last comes back channels last: the copies over the link are plain ones."""
    cache = torch.randn(2, 3, 4, 5).permute(3, 0, 1, 2)[None]
    parked = tiled_decode._parked(cache)
    assert torch.equal(parked, cache) and parked.stride() == cache.stride()
