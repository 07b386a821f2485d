"""The decoder's own stream follows the computation, and nothing it uses is given away under it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fake_streams import StreamClocks
from torch import Tensor

from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.decode import FrameDecoder
from lipcast.memory.copier import CudaCopier
from lipcast.memory.device import decode_stream
from lipcast.memory.graphs import CudaGraphs
from lipcast.models.vae_blocks import DecoderState

SHAPE = (3, 2, 8, 8)


class SumDecoder:
    """Decodes to the sum of all latents so far, which is its only cache."""

    def new_decoder_state(self) -> DecoderState:
        return DecoderState()

    def prime(self, latent_BCTHW: Tensor, state: DecoderState) -> None:
        state.caches["sum"] = latent_BCTHW.sum(dim=2)

    def decode_chunk(self, latent_BCTHW: Tensor, state: DecoderState) -> Tensor:
        state.caches["sum"] = state.caches["sum"] + latent_BCTHW.sum(dim=2)
        return state.caches["sum"][:, :, None].expand(-1, -1, 8, -1, -1) * 0.01


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamClocks]:
    clocks = StreamClocks()
    clocks.install(monkeypatch)
    with clocks:
        yield clocks


def decoder_on(world: StreamClocks) -> FrameDecoder:
    still_CFHW = world.on_gpu(torch.ones(3, 7, 8, 8)).mul_(1)
    return FrameDecoder(SumDecoder(), ReferenceLatents(still_CFHW, still_CFHW, still_CFHW))


def test_blocks_are_decoded_after_they_are_computed(world: StreamClocks) -> None:
    decoder, latent_CFHW = decoder_on(world), world.on_gpu(torch.zeros(SHAPE))
    assert len(world.made) == 1
    pending = []
    for _ in range(3):
        latent_CFHW = world.on_gpu(latent_CFHW + 1)
        pending.append(decoder.submit(latent_CFHW))
    assert not pending[0].is_ready, "the host has not waited for anything yet"
    frames = [frames.collect() for frames in pending]
    assert all(p.is_ready for p in pending) and not world.races
    # 7 latents of 1, then 2 latents of 1, of 2 and of 3: 127.5 * (1 + sum / 100).
    assert [int(f[0, 0, 0, 0]) for f in frames] == [139, 144, 152]


def test_frames_go_before_ticks_and_copies(world: StreamClocks) -> None:
    """Lower numbers go first. A recorded tick keeps the priority of the stream it was recorded on."""
    decoder_on(world)
    device = torch.device("cuda", 0)
    decode_stream(device)
    CudaCopier(device)
    CudaGraphs(device)
    assert [stream.priority for stream in world.made] == [-1, -1, 0, 0, 0]
    assert world.compute.priority == 0


def test_the_state_is_changed_and_released_when_the_stream_is_done(world: StreamClocks) -> None:
    decoder = decoder_on(world)
    decoder.submit(world.on_gpu(torch.ones(SHAPE)).mul_(1))
    (stream,) = world.made

    def convert(state: DecoderState) -> DecoderState:
        assert world.host.known[stream] == stream.known[stream]
        return state

    decoder.change(SumDecoder(), convert)
    decoder.submit(world.on_gpu(torch.ones(SHAPE)).mul_(1))
    decoder.release()
    assert world.host.known[stream] == stream.known[stream]
    assert not decoder.state.caches and not world.races


@pytest.mark.parametrize("forgets", ["wait_stream", "record_stream"])
def test_the_clocks_see_what_is_not_ordered(
    world: StreamClocks, monkeypatch: pytest.MonkeyPatch, forgets: str
) -> None:
    owner = "fake_streams.FakeStream" if forgets == "wait_stream" else "fake_streams.GpuTensor"
    monkeypatch.setattr(f"{owner}.{forgets}", lambda self, other: None)
    decoder_on(world).submit(world.on_gpu(torch.ones(SHAPE)).mul_(1))
    assert world.races
