"""From a picture to condition latents, and from latents to the video's frames (case05e)."""

from __future__ import annotations

import pytest
import torch
from golden_helpers import max_error
from PIL import Image

from lipcast.config.models import VAEConfig
from lipcast.media.image import fit_portrait
from lipcast.models.vae import VideoVAE


@pytest.fixture
def vae(golden) -> VideoVAE:
    """Case 07's autoencoder with the last convolution of the rollouts."""
    case = golden("case07")
    meta = case.meta
    config = VAEConfig(
        dim=meta["dim"], z_dim=meta["z_dim"], dim_mult=tuple(meta["dim_mult"]),
        num_res_blocks=meta["num_res_blocks"],
        temporal_downsample=tuple(meta["temporal_downsample"]),
        mean=tuple(case["outputs/latent_mean"].tolist()),
        std=tuple(case["outputs/latent_std"].tolist()),
    )  # fmt: skip
    model = VideoVAE(config)
    weights = case.weights() | golden("case05_model").under("vae_override/")
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def _portrait(case) -> torch.Tensor:
    """The picture fitted to the latents' size, in [-1, 1]."""
    height, width = (8 * n for n in case.meta["lat"])
    pixels = fit_portrait(Image.fromarray(case["inputs/image_u8"].numpy()), height, width)
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def test_condition_latents(golden, vae):
    """A one-frame encode, and the 19 latents of 73 still frames."""
    case = golden("case05e")
    still = vae.encode_still(_portrait(case), 73)
    assert max_error(still[:, :, :1], case["mid/prefill0/ref_latents"]) <= 2e-5
    assert max_error(still, case["mid/prefill0/motion_latents"]) <= 2e-5


@pytest.mark.slow
@torch.no_grad()
def test_frames(golden, vae):
    """Primed with 7 motion latents, then block by block; the reference drops the first 3 frames."""
    case = golden("case05e")
    state = vae.new_decoder_state()
    vae.prime(case["mid/prefill0/motion_latents"][:, :, :7], state)
    finished = sorted(n for n in case.names if n.endswith("step3/latent"))
    video = torch.cat([vae.decode_chunk(case[n][None], state)[0] for n in finished], dim=1)[:, 3:]
    index = case["outputs/video_frame_index"]
    assert max_error(video[:, index], case["outputs/video_frames_selected"]) <= 1e-4
