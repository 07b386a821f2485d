"""The speech encoder with gradients: a voice becomes the features of every video frame.

The numbers are those of the engine's `FeatureStream` for a whole file.

Shapes: N samples, G layers, T features at 50 Hz, D width, F video frames.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.models.speech import (
    SpeechEncoder,
    interpolate,
    middle_index,
    middle_ratio,
    normalise,
)


def encode_voice(encoder: SpeechEncoder, wave_N: Tensor, num_frames: int) -> Tensor:
    """Return features [G, D, F] of a voice whose sound is as long as its video."""
    std = float(wave_N.double().std(correction=0))
    normal_N = normalise(wave_N, mean=float(wave_N.double().mean()), std=std)
    num_features = encoder.config.num_features(num_frames * SAMPLE_RATE // VIDEO_FPS)
    needed = (num_features - 1) * encoder.config.stride + encoder.config.receptive_field
    layers_GTD = encoder(functional.pad(normal_N, (0, max(0, needed - len(normal_N))))[:needed])
    position_F = middle_index(num_frames).double() * middle_ratio(num_features)
    return interpolate(layers_GTD, position_F.to(layers_GTD.device)).transpose(1, 2)
