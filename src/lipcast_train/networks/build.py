"""Build the networks of a new model, with weights that training can begin from.

Input: `Sizes`: what differs from the embedded model's configuration files. Output: `Networks`. Weights are a
function of the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipcast.config.models import DiTConfig, Models, SpeechShape, TextConfig, VAEConfig
from lipcast.models.dit import DiT
from lipcast.models.speech import SpeechConfig, SpeechEncoder
from lipcast.models.text import TextEncoder
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_tiny import TinyDecoder
from lipcast.weights.bundle import load_bundle
from lipcast.weights.checkpoint import checkpoint_dir, read_json
from lipcast_train.networks.autoencoder import convolve_in_planes

DOCUMENTS = {
    "dit": "config.json",
    "vae": "vae_config.json",
    "text": "t5_config.json",
    "speech": "wav2vec2-tiny/config.json",
}
"""Where the configuration of each network lies in a checkpoint."""
_MASK_STD = 0.02


@dataclass(frozen=True, slots=True)
class Sizes:
    """Keys of the official configuration files that differ from the embedded model's."""

    dit: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    speech: Mapping[str, Any] = field(default_factory=dict)
    decoder_widths: tuple[int, ...] = (64, 48, 32, 16)

    def document(self, network: str) -> dict[str, Any]:
        """Return the whole configuration file of a network."""
        changed: Mapping[str, Any] = getattr(self, network)
        return {**read_json(checkpoint_dir("tiny") / DOCUMENTS[network]), **changed}

    @property
    def models(self) -> Models:
        """The configurations, read from the files."""
        return Models(
            DiTConfig.from_json(self.document("dit")),
            VAEConfig.from_json(self.document("vae")),
            TextConfig.from_json(self.document("text")),
            SpeechShape.from_json(self.document("speech")),
        )


@dataclass(frozen=True, slots=True)
class Networks:
    """Every network of one model; `decoder` is the fast one."""

    sizes: Sizes
    dit: DiT
    vae: VideoVAE
    text: TextEncoder
    speech: SpeechEncoder
    decoder: TinyDecoder

    def set_statistics(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Say how the latents are distributed; they are normalised by it from now on."""
        self.vae.config = replace(
            self.vae.config, mean=tuple(mean_C.tolist()), std=tuple(std_C.tolist())
        )

    def to(self, device: torch.device) -> None:
        """Move all networks."""
        for network in (self.dit, self.vae, self.text, self.speech, self.decoder):
            network.to(device).requires_grad_(False).eval()


def build_networks(sizes: Sizes, *, seed: int) -> Networks:
    """Return networks on the CPU with initial weights, none of which wants a gradient."""
    models = sizes.models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(
            sizes,
            _initialised(DiT(models.dit)),
            VideoVAE(replace(models.vae, mean=(0.0,) * models.vae.z_dim, std=(1.0,) * models.vae.z_dim)),
            TextEncoder(models.text),
            SpeechEncoder(SpeechConfig.from_json(sizes.document("speech"))),
            TinyDecoder(sizes.decoder_widths, z_dim=models.vae.z_dim),
        )  # fmt: skip
    convolve_in_planes(networks.vae)
    networks.to(torch.device("cpu"))
    return networks


def take_autoencoder(vae: VideoVAE, model: str) -> None:
    """Begin from the trained autoencoder of a model of the same sizes."""
    known = load_bundle(
        checkpoint_dir(model), device=torch.device("cpu"), dtype=torch.float32, networks=("vae",)
    ).vae
    vae.load_state_dict(known.state_dict())


def _initialised(dit: DiT) -> DiT:
    """Give the transformer weights from which every block and the voice begin as small changes."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    width = dit.config.dim
    for block in dit.layers:
        nn.init.normal_(block.modulation, std=width**-0.5)
    nn.init.normal_(dit.head.modulation, std=width**-0.5)
    nn.init.normal_(dit.trainable_cond_mask.weight, std=_MASK_STD)
    nn.init.zeros_(dit.cond_encoder.weight)  # trained by nothing: there are no poses
    nn.init.zeros_(dit.head.head.weight)
    return dit
