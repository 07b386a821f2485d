"""The tiny decoder: as a stream, from files, behind the interfaces of the big one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.decode import FrameDecoder
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.errors import CheckpointError
from lipcast.models.vae_tiny import TINY_DECODER_WIDTHS, MemoryBlock, MoreFrames, TinyDecoder
from lipcast.weights.tiny_decoder import load_tiny_decoder

WIDTHS, Z_DIM = (8, 6, 4, 4), 5


@pytest.fixture(scope="module")
def decoder() -> TinyDecoder:
    torch.manual_seed(0)
    model = TinyDecoder(WIDTHS, z_dim=Z_DIM)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def latents(num_frames: int, height: int = 4, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(1, Z_DIM, num_frames, height, width, generator=generator)


def decode_at_once(decoder: TinyDecoder, latent_BCTHW: Tensor) -> Tensor:
    """Layer by layer over the whole video, as the model is defined."""
    x_TCHW = latent_BCTHW[0].transpose(0, 1)
    for layer in decoder.decoder:
        if isinstance(layer, MemoryBlock):
            before = functional.pad(x_TCHW, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
            x_TCHW = functional.relu(layer.conv(torch.cat((x_TCHW, before), 1)) + x_TCHW)
        elif isinstance(layer, MoreFrames):
            num_frames, channels, height, width = x_TCHW.shape
            x_TCHW = layer.conv(x_TCHW).reshape(
                num_frames * layer.num_frames, channels, height, width
            )
        else:
            x_TCHW = layer(x_TCHW)
    return x_TCHW[3:].clamp(0, 1).mul(2).sub(1).transpose(0, 1)[None]


@pytest.mark.parametrize("chunks", [[6], [1, 5], [3, 3], [1, 2, 2, 1]])
def test_a_stream_equals_the_whole(decoder, chunks):
    latent, state = latents(6), decoder.new_decoder_state()
    video = torch.cat([decoder.decode_chunk(z, state) for z in latent.split(chunks, dim=2)], dim=2)
    assert video.shape == (1, 3, 21, 32, 48)
    torch.testing.assert_close(video, decode_at_once(decoder, latent), rtol=0, atol=1e-5)
    assert torch.equal(video, decoder.decode_chunk(latent, decoder.new_decoder_state()))
    assert video.std() > 0.05, "a picture that says something"


def test_the_state_does_not_grow(decoder):
    state = decoder.new_decoder_state()
    sizes = []
    for z in latents(4).split(1, dim=2):
        decoder.prime(z, state)
        sizes.append(state.num_bytes)
    areas = [24 * 4**stage for stage in range(3)]
    numbers = sum(3 * w * area for w, area in zip(WIDTHS, areas, strict=False))
    assert sizes == [4 * numbers] * 4


def test_behind_the_interfaces_of_the_big_decoder(decoder):
    """Frames of a session, and tiles."""
    still = latents(7)
    reference = ReferenceLatents(
        ref_C1HW=still[0, :, :1], motion_CFHW=still[0], history_CFHW=still[0]
    )
    frames = FrameDecoder(decoder, reference).submit(latents(3)[0]).collect()
    assert frames.shape == (12, 32, 48, 3)
    wide = latents(3, 4, 40)
    tiles = TiledDecoder(decoder, (1, 2), park=True)
    video = tiles.decode_chunk(wide, tiles.new_decoder_state())
    expected = decoder.decode_chunk(wide, decoder.new_decoder_state())
    assert (video - expected).square().mean() < 1e-4


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_the_user(decoder, tmp_path, suffix):
    """An encoder in the file is ignored; of a layer that makes too many frames, the last stay."""
    tensors = {name: t.clone() for name, t in decoder.state_dict().items()}
    once = tensors["decoder.7.conv.weight"]
    tensors["decoder.7.conv.weight"] = torch.cat((torch.zeros_like(once), once))
    path = write(tmp_path / f"tiny{suffix}", {**tensors, "encoder.0.weight": torch.zeros(2, 2)})
    loaded = load_tiny_decoder(path, device="cpu", dtype=torch.float32, z_dim=Z_DIM)
    video = loaded.decode_chunk(latents(2), loaded.new_decoder_state())
    assert torch.equal(video, decoder.decode_chunk(latents(2), decoder.new_decoder_state()))


def test_files_of_another_model(decoder, tmp_path):
    tensors = {name: t.clone() for name, t in decoder.state_dict().items()}
    load = {"device": "cpu", "dtype": torch.float32, "z_dim": Z_DIM}
    path = tmp_path / "other.safetensors"
    write(path, {"decoder.conv1.weight": torch.zeros(2, 2, 3, 3)})
    with pytest.raises(CheckpointError, match=r"expected decoder\.1\.weight"):
        load_tiny_decoder(path, **load)
    write(path, {k: v for k, v in tensors.items() if k != "decoder.22.bias"})
    with pytest.raises(CheckpointError, match=r"decoder\.22\.bias"):
        load_tiny_decoder(path, **load)
    with pytest.raises(CheckpointError, match="expected shape"):
        load_tiny_decoder(write(path, tensors), **{**load, "z_dim": Z_DIM + 1})


def test_the_published_widths():
    names = TinyDecoder().state_dict()
    assert sum(tensor.numel() for tensor in names.values()) == 9_844_611
    assert TINY_DECODER_WIDTHS == (256, 128, 64, 64)
    assert names["decoder.3.conv.0.weight"].shape == (256, 512, 3, 3)
    assert names["decoder.19.conv.weight"].shape == (128, 64, 1, 1)
    assert names["decoder.22.weight"].shape == (3, 64, 3, 3)


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path
