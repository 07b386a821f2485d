"""The speech encoder: a 16 kHz voice becomes the wav2vec2 layers that drive the mouth, 25 a second.

Duty: wav2vec2 (transformers) in two stages, and the pure functions around it: normalisation,
50 -> 30 Hz interpolation, 30 -> 25 Hz index rule.
Inputs: SpeechConfig (the checkpoint's config.json), waveform. Outputs: [layers + 1, T, width].
Invariants: the numbers do not depend on the version of transformers; forward holds no state.
transformers is imported when an encoder is built, not before.

Shapes: N samples, G layers + 1, T features at 50 Hz (or 30 Hz, where named so), D width, F frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.errors import CheckpointError

FEATURE_RATE = 50
"""wav2vec2 features per second (total convolution stride of 320 samples)."""
MIDDLE_RATE = 30
"""The rate between wav2vec2 and video; the published model was trained through it."""
FEATURES_PER_FRAME = FEATURE_RATE // VIDEO_FPS

_VARIANCE_FLOOR = 1e-7
_DROPPED = ("lm_head.", "masked_spec_embed")
"""The CTC head and the training-time mask vector: part of the official file, never used."""
_LAST_LAYER_KEY = "lipcast_last_layer_norm"
"""Our own key of config.json, where a folder wants to say it outright."""
_LAST_LAYER_CHANGED = (5, 16)
"""transformers before this gave the last layer after the final LayerNorm, later ones give it before.
The transformer was trained on what the library gave that wrote the folder."""
_OLD_WEIGHT_NORM = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """Facts about a wav2vec2 folder that the engine needs; `raw` is its whole config.json."""

    dim: int
    num_layers: int
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    position_kernel: int
    """Features that the positional convolution spans."""
    last_layer_norm: bool
    """Whether the last of the layers is after the final LayerNorm, as in the published model."""
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> Self:
        """Read the Hugging Face keys; raise CheckpointError for another kind of speech model."""
        wanted = {
            "model_type": "wav2vec2", "feat_extract_norm": "layer", "do_stable_layer_norm": True,
            "add_adapter": False, "adapter_attn_dim": None,
        }  # fmt: skip
        for key, value in wanted.items():
            if source.get(key, value) != value:
                raise CheckpointError(
                    f"wav2vec2 config.json: expected {key} = {value!r}, got {source[key]!r}; "
                    "use the speech encoder that came with the checkpoint"
                )
        config = cls(
            dim=source["hidden_size"],
            num_layers=source["num_hidden_layers"],
            conv_kernel=tuple(source["conv_kernel"]),
            conv_stride=tuple(source["conv_stride"]),
            position_kernel=source["num_conv_pos_embeddings"],
            last_layer_norm=source.get(_LAST_LAYER_KEY, _is_written_before_change(source)),
            raw=source,
        )
        if config.stride * FEATURE_RATE != SAMPLE_RATE:
            raise CheckpointError(
                f"wav2vec2 config.json: expected a total stride of {SAMPLE_RATE // FEATURE_RATE} "
                f"samples, got {config.stride}"
            )
        return config

    @property
    def stride(self) -> int:
        """Samples from one feature to the next."""
        return math.prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one feature is computed from (before the transformer layers)."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.conv_kernel), reversed(self.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def num_features(self, num_samples: int) -> int:
        """Return the number of features of a waveform: those whose receptive field lies inside it."""
        return max(0, (num_samples - self.receptive_field) // self.stride + 1)


def _is_written_before_change(source: Mapping[str, Any]) -> bool:
    """Return whether the folder's transformers is older than the change; one without a version is."""
    numbers = re.match(r"(\d+)\.(\d+)", str(source.get("transformers_version", "")))
    return numbers is None or (int(numbers[1]), int(numbers[2])) < _LAST_LAYER_CHANGED


def speech_name(name: str) -> str | None:
    """Return the name in `SpeechEncoder` of a name in the folder; None for what is left out (CTC head).

    Takes names with and without the prefix "wav2vec2." and both spellings of the positional
    convolution's weight norm.
    """
    inner = name.removeprefix("wav2vec2.")
    if inner.startswith(_DROPPED):
        return None
    for old, new in _OLD_WEIGHT_NORM.items():
        inner = inner.replace(old, new)
    return f"model.{inner}"


def build_model(config: SpeechConfig) -> nn.Module:
    """Return the bare wav2vec2 of transformers (safe under `torch.device("meta")`)."""
    from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

    # Without masking in the configuration the model has no mask vector to load.
    no_masking = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False}
    settings = Wav2Vec2Config.from_dict({**config.raw, **no_masking})
    settings._attn_implementation = "sdpa"
    return cast(nn.Module, Wav2Vec2Model(settings))


class SpeechEncoder(nn.Module):
    """wav2vec2, all layers; run it in float32."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        self.requires_grad_(False).eval()

    def forward(self, wave_N: Tensor) -> Tensor:
        """Encode a normalised waveform [N] as the stacked layers [G, T, D]."""
        return self.contextualise(self.extract(wave_N))

    def extract(self, wave_N: Tensor) -> Tensor:
        """Run the local stage: convolutions and projection, [N] to [T, D].

        Feature t is computed from the `receptive_field` samples that begin at t * stride and from
        nothing else, so a waveform may be cut anywhere on that grid.
        """
        model: Any = self.model
        local_BDT = model.feature_extractor(wave_N[None])
        return cast(Tensor, model.feature_projection(local_BDT.transpose(1, 2))[0][0])

    def contextualise(self, local_TD: Tensor) -> Tensor:
        """Run the global stage: the transformer layers over [T, D], giving [G, T, D].

        Layer 0 is the layers' input; the last one is after the final LayerNorm if the
        configuration says so. The layers are called one by one, so that no version of
        transformers decides what is among them.
        """
        encoder: Any = self.model.encoder
        hidden_BTD = local_TD[None]
        hidden_BTD = hidden_BTD + encoder.pos_conv_embed(hidden_BTD)
        states = []
        for layer in encoder.layers:
            states.append(hidden_BTD)
            result = layer(hidden_BTD)
            hidden_BTD = result[0] if isinstance(result, tuple) else result
        if self.config.last_layer_norm:
            hidden_BTD = encoder.layer_norm(hidden_BTD)
        return torch.cat([*states, hidden_BTD])


def normalise(wave_N: Tensor, *, mean: float, std: float) -> Tensor:
    """Return zero mean and unit variance by given statistics: (x - mean) / sqrt(std² + 1e-7)."""
    return (wave_N - mean) / math.sqrt(std * std + _VARIANCE_FLOOR)


def num_middle_features(num_features: int) -> int:
    """Return the length at 30 Hz of a sequence at 50 Hz, rounded down."""
    # Written in this order, in floating point, as the published code rounds.
    return int(num_features / FEATURE_RATE * MIDDLE_RATE)


def middle_ratio(num_features: int) -> float:
    """Return 50 Hz features per 30 Hz step where both ends of the sequences coincide (align_corners)."""
    return (num_features - 1) / max(1, num_middle_features(num_features) - 1)


def interpolate(features_GTD: Tensor, position_F: Tensor) -> Tensor:
    """Interpolate linearly along T at fractional positions, clamped to the ends: [G, F, D]."""
    position_F = position_F.clamp(0, features_GTD.shape[1] - 1)
    low_F = position_F.floor().long()
    high_F = (low_F + 1).clamp(max=features_GTD.shape[1] - 1)
    weight_F1 = (position_F - low_F).to(features_GTD.dtype)[:, None]
    low_GFD = features_GTD[:, low_F]
    return torch.lerp(low_GFD, features_GTD[:, high_F], weight_F1)


def middle_index(num_frames: int, *, first: int = 0) -> Tensor:
    """Return the 30 Hz feature of each video frame [F]: round(1.2 i) for i = first, first + 1, …

    In integers; 6i/5 never ends in .5, so how halves round does not matter.
    """
    frame_F = torch.arange(first, first + num_frames)
    step = 2 * MIDDLE_RATE * frame_F + VIDEO_FPS
    return step // (2 * VIDEO_FPS)
