"""Case 7: the video autoencoder against the public implementation's own tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipcast.config.models import VAEConfig
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.models.vae_kernels import ConvKernels
from lipcast.weights.load import without_memory

TOLERANCE = 1e-5


@pytest.fixture
def case(golden):
    return golden("case07")


@pytest.fixture
def vae(case):
    meta = case.meta
    config = VAEConfig(
        dim=int(meta["dim"]),
        z_dim=int(meta["z_dim"]),
        dim_mult=tuple(meta["dim_mult"]),
        num_res_blocks=int(meta["num_res_blocks"]),
        temporal_downsample=tuple(meta["temporal_downsample"]),
        mean=tuple(case["outputs/latent_mean"].tolist()),
        std=tuple(case["outputs/latent_std"].tolist()),
    )
    with without_memory():
        model = VideoVAE(config)
    model.load_state_dict(case.weights(), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.squeeze(0), expected, atol=TOLERANCE, rtol=0)


def lengths(case, prefix: str) -> list[int]:
    """The numbers in the names `outputs/<prefix>_<number>` of this case."""
    ends = (name.removeprefix(f"outputs/{prefix}_") for name in case.names)
    return sorted(int(end) for end in ends if end.isdigit())


def test_encode(case, vae):
    video = case["inputs/video"].unsqueeze(0)
    assert lengths(case, "encode")
    for num_frames in lengths(case, "encode"):
        latent = vae.encode(video[:, :, :num_frames])
        assert_near(latent, case[f"outputs/encode_{num_frames}"])


def test_frames_beyond_the_last_group_are_dropped(case, vae):
    """mid/note_encode_truncates_7_equals_5, for every length that has more frames behind it."""
    video = case["inputs/video"].unsqueeze(0)
    group = vae.config.temporal_factor
    for num_frames in lengths(case, "encode"):
        for extra in range(min(group, video.shape[2] - num_frames + 1)):
            latent = vae.encode(video[:, :, : num_frames + extra])
            assert_near(latent, case[f"outputs/encode_{num_frames}"])


def test_normalisation(case, vae):
    names = [n for n in case.names if n.endswith("_unnormalised") and "encode" in n]
    assert names
    mean, std = (case[f"outputs/latent_{n}"].view(-1, 1, 1, 1) for n in ("mean", "std"))
    for name in names:
        num_frames = int(name.split("_")[1])
        latent = vae.encode(case["inputs/video"][None, :, :num_frames])
        assert_near(latent * std + mean, case[name])


def test_decode(case, vae):
    latent = case["inputs/z"].unsqueeze(0)
    assert lengths(case, "decode")
    for num_latents in lengths(case, "decode"):
        video = vae.decode(latent[:, :, :num_latents])
        assert_near(video, case[f"outputs/decode_{num_latents}"])
        unclamped = f"mid/decode_{num_latents}_unclamped"
        if unclamped in case:
            assert_near(video, case[unclamped].clamp(-1, 1))


def test_encode_then_decode(case, vae):
    names = [n for n in case.names if "_of_encode" in n]
    for name in names:
        num_frames = int(name.rsplit("encode", 1)[1])
        latent = vae.encode(case["inputs/video"][None, :, :num_frames])
        assert_near(vae.decode(latent), case[name])


def stream_chunks(case, vae) -> list[Tensor]:
    """The latents of each stored chunk, by the number of frames that it gave."""
    group = vae.config.temporal_factor
    names = sorted(n for n in case.names if n.startswith("outputs/stream_chunk"))
    num_frames = [case[name].shape[1] for name in names]
    counts = [(n + group - 1) // group if i == 0 else n // group for i, n in enumerate(num_frames)]
    return list(case["inputs/z"].unsqueeze(0)[:, :, : sum(counts)].split(counts, dim=2))


def test_stream_equals_whole(case, vae):
    state = vae.new_decoder_state()
    chunks = stream_chunks(case, vae)
    videos = [vae.decode_chunk(chunk, state) for chunk in chunks]
    for index, video in enumerate(videos):
        assert_near(video, case[f"outputs/stream_chunk{index}"])
    whole = vae.decode(torch.cat(chunks, dim=2))
    assert torch.equal(torch.cat(videos, dim=2), whole)


def test_a_stream_goes_on_until_it_is_reset(case, vae):
    """The next chunk continues the video of a state; with a new state it begins a new one."""
    expected = case["mid/stream_reuse_without_reset"]
    state = vae.new_decoder_state()
    chunks = stream_chunks(case, vae)
    for chunk in chunks:
        vae.decode_chunk(chunk, state)
    num_more = expected.shape[1] // vae.config.temporal_factor
    more = case["inputs/z"].unsqueeze(0)[:, :, :num_more]
    assert_near(vae.decode_chunk(more, state), expected)
    assert torch.equal(vae.decode_chunk(more, vae.new_decoder_state()), vae.decode(more))


def test_cpu_layout(case, vae):
    """The same tensors by chains of steps: encoder, decoder, and a video in two chunks."""
    fast = to_channels_last(vae, ConvKernels(torch.float32))
    num_frames = lengths(case, "encode")[-1]
    latent = fast.encode(case["inputs/video"][None, :, :num_frames])
    assert_near(latent, case[f"outputs/encode_{num_frames}"])
    num_latents = lengths(case, "decode")[1]
    chunks = case["inputs/z"][None, :, :num_latents].split([1, num_latents - 1], dim=2)
    state = fast.new_decoder_state()
    video = torch.cat([fast.decode_chunk(chunk, state) for chunk in chunks], dim=2)
    assert_near(video, case[f"outputs/decode_{num_latents}"])
