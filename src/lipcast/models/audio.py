"""Speech features become audio tokens, and audio tokens move the hidden states.

Input: wav2vec2 hidden layers of one block of video frames. Output: `AudioConditioning`, made once per
block and used by every denoising step. Nothing here depends on the noise or the timestep.

Legend: A actors, L feature layers, C feature channels, V video frames, F latent frames,
K tokens per latent frame, S picture tokens per latent frame, G latent frames of all lanes, D model width,
N heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.config.models import DiTConfig
from lipcast.models.attention import attend_batch
from lipcast.models.kernels.plain import Kernels, Modulation, RowFormat
from lipcast.models.layers import AttentionProjections, layer_norm32, linear32

_ADAIN_EPS = 1e-5
_NORM_EPS = 1e-6
_LEAD_FRAMES = 5
"""Copies of a block's first frame put in front of it. An output sees 8 earlier frames, the first kept one
5 before the block; the public implementation puts 73, whose extra outputs are all cut away again."""


class CausalConv1d(nn.Module):
    """A convolution over time that pads on the left only, with copies of the first frame."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel_size=3, stride=stride)

    def forward(self, x_BCV: Tensor) -> Tensor:
        """Compute in float32, whatever the weights are stored in."""
        padded = functional.pad(x_BCV, (2, 0), mode="replicate")
        weight, bias = self.conv.weight.float(), self.conv.bias
        assert bias is not None
        return functional.conv1d(padded, weight, bias.float(), stride=self.conv.stride)


class AudioTokenizer(nn.Module):
    """Two branches over the mixed layers: `num_tokens` local tokens and one global token per latent frame."""

    def __init__(self, channels: int, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.conv1_local = CausalConv1d(channels, dim // 4 * num_tokens)
        self.conv1_global = CausalConv1d(channels, dim // 4)
        self.conv2 = CausalConv1d(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv1d(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, mixed_ACV: Tensor) -> tuple[Tensor, Tensor]:
        """Return (global_AFD, local_AFKD), K = num_tokens + 1: the learned padding token comes last."""
        local = self.conv1_local(mixed_ACV).unflatten(1, (self.num_tokens, -1)).flatten(0, 1)
        local = self._downsample(local).unflatten(0, (-1, self.num_tokens)).transpose(1, 2)
        padding = self.padding_tokens.float().expand(*local.shape[:2], 1, -1)
        overall = self._downsample(self.conv1_global(mixed_ACV))
        return linear32(self.final_linear, overall), torch.cat((local, padding), dim=2)

    def _downsample(self, x_BCV: Tensor) -> Tensor:
        """Merge four video frames into one latent frame: [B, F, D]."""
        for conv in (self.conv2, self.conv3):
            x_BCV = conv(_norm_silu(x_BCV.mT).mT)
        return _norm_silu(x_BCV.mT)


def _norm_silu(x: Tensor) -> Tensor:
    return functional.silu(layer_norm32(x, _NORM_EPS))


class CausalAudioEncoder(nn.Module):
    """Mixes the feature layers and encodes every block on its own."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, config.num_audio_layers, 1, 1))
        self.encoder = AudioTokenizer(config.audio_dim, config.dim, config.num_audio_token)

    def forward(
        self, features_ALCV: Tensor, *, lead_frames: int = _LEAD_FRAMES
    ) -> tuple[Tensor, Tensor]:
        """Return (global_AFD, local_AFKD) in float32, one row per 4 video frames of the block."""
        mix = functional.silu(self.weights.float())
        mixed_ACV = (features_ALCV.float() * mix).sum(1) / mix.sum(1)
        first = mixed_ACV[..., :1].expand(-1, -1, lead_frames)
        overall, local = self.encoder(torch.cat((first, mixed_ACV), dim=-1))
        kept = features_ALCV.shape[-1] // 4
        return overall[:, -kept:], local[:, -kept:]

    def scaled(self, features_ALCV: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, `scale` times as far from the tokens of no sound (features of zero).

        1 is `forward` to the bit. As guidance does with velocities, but before the transformer: no pass more.
        """
        overall_AFD, local_AFKD = self(features_ALCV)
        if scale != 1:
            no_overall_1FD, no_local_1FKD = self(torch.zeros_like(features_ALCV[:1]))
            overall_AFD = no_overall_1FD + scale * (overall_AFD - no_overall_1FD)
            local_AFKD = no_local_1FKD + scale * (local_AFKD - no_local_1FKD)
        return overall_AFD, local_AFKD


@dataclass(frozen=True, slots=True)
class InjectorInput:
    """Inputs of one injector for one block: AdaLN rows, keys and values of its audio tokens."""

    shift_AFD: Tensor
    scale_AFD: Tensor
    keys_AFKNd: Tensor
    values_AFKNd: Tensor


@dataclass(frozen=True, slots=True)
class AudioConditioning:
    """The voice of one block, ready for every injector; `mask_AFS` says where each actor is."""

    injectors: tuple[InjectorInput, ...]
    mask_AFS: Tensor | None = None

    @property
    def num_actors(self) -> int:
        return self.injectors[0].shift_AFD.shape[0]


class AdaLayerNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, overall_AFD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (shift, scale), in the order of the checkpoint."""
        shift, scale = linear32(self.linear, functional.silu(overall_AFD)).chunk(2, dim=-1)
        return shift, scale


class AudioInjector(nn.Module):
    """After chosen transformer blocks, picture tokens attend to the voice of their own latent frame."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        count = len(config.audio_inject_layers)
        self.injector = nn.ModuleList(
            AttentionProjections(config.dim, config.num_heads, config.eps) for _ in range(count)
        )
        self.injector_adain_layers = nn.ModuleList(AdaLayerNorm(config.dim) for _ in range(count))
        self.kernels = Kernels()

    def _pairs(self) -> list[tuple[AttentionProjections, AdaLayerNorm]]:
        pairs = zip(self.injector, self.injector_adain_layers, strict=True)
        return cast("list[tuple[AttentionProjections, AdaLayerNorm]]", list(pairs))

    def prepare(self, index: int, overall_AFD: Tensor, local_AFKD: Tensor) -> InjectorInput:
        """Return everything of injector `index` that does not depend on the hidden states."""
        attention, adain = self._pairs()[index]
        local = local_AFKD.to(attention.norm_k.weight.dtype)
        (shift, scale), (keys, values) = adain(overall_AFD), attention.keys_values(local)
        return InjectorInput(shift, scale, keys, values)

    def forward(self, index: int, x_GSD: Tensor, audio: AudioConditioning) -> Tensor:
        """Return the residual of injector `index`, summed over actors; `audio` covers the G frames of x."""
        given = audio.injectors[index]
        residuals = (
            self._residual(index, actor, x_GSD, audio) for actor in range(len(given.shift_AFD))
        )
        return reduce(torch.add, residuals)

    def _residual(self, index: int, actor: int, x_GSD: Tensor, audio: AudioConditioning) -> Tensor:
        """Return what the voice of one actor adds."""
        attention, given, kernels = self._pairs()[index][0], audio.injectors[index], self.kernels
        dtype = attention.norm_q.weight.dtype
        shift_G1D, scale_G1D = given.shift_AFD[actor, :, None], given.scale_AFD[actor, :, None]
        moved = Modulation(shift_G1D, scale_G1D, _ADAIN_EPS)
        normed = kernels.normalise(x_GSD, moved, RowFormat.of(attention.q, dtype=dtype))
        q_GSNd = attention.heads(kernels.rms_norm(attention.q(normed), attention.norm_q))
        heads = attend_batch(q_GSNd, given.keys_AFKNd[actor], given.values_AFKNd[actor])
        form = RowFormat.of(attention.o, dtype=dtype)
        residual: Tensor = attention.o(kernels.rows(heads.flatten(-2), form))
        if audio.mask_AFS is None:
            return residual
        return residual * audio.mask_AFS[actor, :, :, None]


def join_audio(lanes: Sequence[AudioConditioning]) -> AudioConditioning:
    """Lay the blocks of several lanes end to end in time; all have the same number of actors."""
    if len(lanes) == 1:
        return lanes[0]
    assert len({lane.num_actors for lane in lanes}) == 1, "lanes of one tick have equal actors"
    joined = (
        InjectorInput(
            torch.cat([p.shift_AFD for p in parts], dim=1),
            torch.cat([p.scale_AFD for p in parts], dim=1),
            torch.cat([p.keys_AFKNd for p in parts], dim=1),
            torch.cat([p.values_AFKNd for p in parts], dim=1),
        )
        for parts in zip(*(lane.injectors for lane in lanes), strict=True)
    )
    return AudioConditioning(tuple(joined), _join_masks(lanes))


def _join_masks(lanes: Sequence[AudioConditioning]) -> Tensor | None:
    masks = [lane.mask_AFS for lane in lanes]
    assert len({mask is None for mask in masks}) == 1, "either every lane has a mask or none"
    return torch.cat([m for m in masks if m is not None], dim=1) if masks[0] is not None else None
