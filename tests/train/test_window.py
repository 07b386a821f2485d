"""One forward over a window is the same network as rings that are filled block by block."""

from __future__ import annotations

import pytest
import torch

import lipcast
from lipcast.models.dit import BlockConditions, DiT, Lane
from lipcast.models.kv_codec import PlainCodec
from lipcast.models.kv_ring import KVRing, RingLayout
from lipcast.models.rope import ref_frame
from lipcast.models.sink import Sink
from lipcast_train.networks.window import WindowConditions, prepare_window, window_velocity

SIZE, TOKENS = 8, 16


@pytest.fixture(scope="module")
def model() -> DiT:
    return lipcast.load("tiny", device="cpu", precision="fp32").bundle.dit


def drawn(num_blocks: int) -> tuple[torch.Tensor, WindowConditions]:
    """Two samples of random latents, at the beginning of a video and in the middle of one."""
    torch.manual_seed(5)
    frames = 3 * num_blocks
    conditions = WindowConditions(
        ref_BC1HW=torch.randn(2, 16, 1, SIZE, SIZE),
        motion_BCFHW=torch.randn(2, 16, 19, SIZE, SIZE),
        features_BLEV=torch.randn(2, 4, 64, 4 * frames),
        contexts=(torch.randn(9, 64), torch.randn(17, 64)),
        first_frames=(0, 777),
        distances=tuple(tuple(range(4 + i, 4 + i + num_blocks)) for i in range(2)),
    )
    return torch.randn(2, 16, frames, SIZE, SIZE), conditions


def streamed(
    model: DiT,
    latent_CFHW: torch.Tensor,
    timestep: float,
    sample: int,
    given: WindowConditions,
    window: int,
) -> torch.Tensor:
    """The velocities of one sample, block by block through a ring, as the engine computes them."""
    device, layers = torch.device("cpu"), model.config.num_layers
    text = model.encode_text(given.contexts[sample])
    sink = Sink.allocate(model.sink_layout(SIZE, SIZE), num_layers=layers, device=device)
    model.prefill(given.ref_BC1HW[sample], given.motion_BCFHW[sample], text, sink)
    codec = PlainCodec(model.config.num_heads, model.config.head_dim, torch.float32)
    first = given.first_frames[sample]
    ring = KVRing.allocate(
        RingLayout(codec, window, TOKENS), num_layers=layers, device=device, start_frame=first
    )
    found = []
    for block, latent in enumerate(latent_CFHW.split(3, dim=1)):
        frame = first + 3 * block
        voice = given.features_BLEV[sample, None, :, :, 12 * block : 12 * (block + 1)]
        table = model.ref_rotary(ref_frame(frame, given.distances[sample][block]), SIZE, SIZE)
        conditions = BlockConditions(
            frame,
            model.block_rotary(frame, SIZE, SIZE),
            sink.place(table, None),
            text,
            model.encode_audio(voice),
        )
        found += model([Lane(latent, model.encode_time(timestep), ring, conditions)])
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(("num_blocks", "window"), [(4, 12), (4, 8)])
def test_one_forward_equals_the_stream(model, num_blocks, window):
    latent, conditions = drawn(num_blocks)
    timesteps = (1000.0, 602.15)
    with torch.inference_mode():
        prepared = prepare_window(model, conditions, ring_frames=window)
        whole = window_velocity(model, latent, timesteps, prepared)
        for sample, timestep in enumerate(timesteps):
            found = streamed(model, latent[sample], timestep, sample, conditions, window)
            assert found.std() > 0.1
            assert torch.allclose(whole[sample], found, atol=2e-5 * float(found.abs().max()))


def test_every_weight_gets_a_gradient():
    """Nothing of the transformer is left out of training, but the encoder of poses, which are not given."""
    trained = DiT(lipcast.load("tiny", device="cpu").bundle.dit.config)
    torch.nn.init.normal_(trained.blocks[0].modulation, std=0.1)
    latent, conditions = drawn(2)
    prepared = prepare_window(trained, conditions, ring_frames=12)
    window_velocity(trained, latent, (900.0, 300.0), prepared).square().mean().backward()
    without = {name for name, weight in trained.named_parameters() if weight.grad is None}
    assert without == {"cond_encoder.weight"}
