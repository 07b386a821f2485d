"""Phase 1: the speech encoder learns to hear how a mouth moves.

A linear layer reads the mouth's track from the encoder's features; it is thrown away. Real
videos have the track that a drawn person would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lipcast.models.speech import SpeechEncoder
from lipcast_train.data.clips import MouthTrack
from lipcast_train.data.pool import ClipPool, dice
from lipcast_train.networks.voices import encode_voice
from lipcast_train.training.devices import Share
from lipcast_train.training.loop import Phase, Recipe

_TRACKS = ("opening_T", "width_T", "rounding_T", "teeth_T", "tongue_T")


@dataclass(frozen=True, slots=True)
class Heard:
    """One voice and what the mouth does: [F, tracks]."""

    wave_N: Tensor
    tracks_FK: Tensor


class HearingObjective(nn.Module):
    """The encoder, and what reads the mouth from it."""

    def __init__(self, speech: SpeechEncoder) -> None:
        super().__init__()
        self.speech = speech.requires_grad_(True)
        speech.model.encoder.layer_norm.requires_grad_(speech.config.last_layer_norm)  # type: ignore[union-attr]
        self.reader = nn.Linear(speech.config.dim * (speech.config.num_layers + 1), len(_TRACKS))

    def forward(self, batch: list[Heard]) -> Tensor:
        """Return the mean squared error of the tracks."""
        return torch.stack([self._error(heard) for heard in batch]).mean()

    def _error(self, heard: Heard) -> Tensor:
        features_GDF = encode_voice(self.speech, heard.wave_N, len(heard.tracks_FK))
        read_FK: Tensor = self.reader(features_GDF.flatten(0, 1).T)
        error: Tensor = (read_FK - heard.tracks_FK).square().mean()
        return error


def speech_phase(
    speech: SpeechEncoder, pool: ClipPool, recipe: Recipe, *, seed: int, device: torch.device
) -> Phase:
    """Return the phase."""

    def batch(step: int, share: Share) -> list[Heard]:
        random = dice(seed, "speech", step)
        indices = share.of([random.randrange(len(pool)) for _ in range(recipe.batch_size)])
        return [
            Heard(torch.from_numpy(wave_N).to(device), tracks_of(mouth).to(device))
            for wave_N, mouth in map(pool.voice, indices)
        ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = HearingObjective(speech)
    return Phase("speech", recipe, objective, batch)


def tracks_of(mouth: MouthTrack) -> Tensor:
    """Return the tracks side by side, [F, tracks]."""
    return torch.from_numpy(np.stack([getattr(mouth, name) for name in _TRACKS], axis=1)).float()
