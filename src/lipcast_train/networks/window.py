"""The transformer over a window of latents in one forward, each block seeing what its ring would hold.

Input: noisy latents of B samples, one timestep a sample, and the conditions of the window. Output: the
velocity of all frames. Every block attends to itself, to the blocks before it at the same noise level as
far as the ring reaches, and to the sink with the reference where that block places it: block by block
through rings the numbers are the same, within rounding.

Legend: B samples, C latent channels, F latent frames of the window, H W latent size, L feature layers,
E feature channels, V video frames (4 F), S tokens per latent frame, T tokens, D model width, N heads,
d head size, G = B F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipcast.models.attention import KeyValue, attend_batch
from lipcast.models.audio import AudioConditioning
from lipcast.models.dit import DiT
from lipcast.models.layers import QueryKeyNorms
from lipcast.models.rope import REF_FRAME, RotaryTable, ref_frame


@dataclass(frozen=True, slots=True)
class WindowConditions:
    """What a window is made from, per sample; F is a whole number of blocks."""

    ref_BC1HW: Tensor
    motion_BCFHW: Tensor
    features_BLEV: Tensor
    contexts: tuple[Tensor, ...]
    """Embedded prompts [tokens, channels]."""
    first_frames: tuple[int, ...]
    """Position in time of the first latent frame."""
    distances: tuple[tuple[int, ...], ...]
    """How far ahead of each block its reference is placed."""


@dataclass(frozen=True, slots=True)
class SinkLayer:
    """Keys and values of the condition tokens in one layer, values [reference | motion]."""

    ref_keys_BSNd: Tensor
    motion_keys_BTNd: Tensor
    values_BTNd: Tensor


@dataclass(frozen=True, slots=True)
class PreparedWindow:
    """All that does not depend on the noise; timesteps of one window share it."""

    text: tuple[tuple[KeyValue, ...], ...]
    """Per layer and sample."""
    sink: tuple[SinkLayer, ...]
    audio: AudioConditioning
    rotary: RotaryTable
    """Of all tokens, samples one after the other."""
    ref_rotaries: tuple[RotaryTable, ...]
    """Per block, of all samples."""
    ring_frames: int


def prepare_window(model: DiT, conditions: WindowConditions, *, ring_frames: int) -> PreparedWindow:
    """Encode prompts, voices and references; `ring_frames` is the window that a ring would hold."""
    height, width = conditions.ref_BC1HW.shape[3:]
    num_blocks = len(conditions.distances[0])
    latents = model.config.latents_per_block
    text = _encode_text(model, conditions.contexts)
    rotaries = [
        model.rotary.video(first, num_blocks * latents, *_patches(model, height, width))
        for first in conditions.first_frames
    ]
    refs = [
        _joined([
            model.ref_rotary(ref_frame(first + block * latents, distances[block]), height, width)
            for first, distances in zip(conditions.first_frames, conditions.distances, strict=True)
        ])
        for block in range(num_blocks)
    ]  # fmt: skip
    return PreparedWindow(
        text,
        _prefill(model, conditions, text),
        _encode_audio(model, conditions.features_BLEV),
        _joined(rotaries).to(model.device),
        tuple(refs),
        ring_frames,
    )


def window_velocity(
    model: DiT, latent_BCFHW: Tensor, timesteps: Sequence[float], prepared: PreparedWindow
) -> Tensor:
    """Return velocity_BCFHW of noisy latents, one timestep a sample."""
    num_frames = latent_BCFHW.shape[2]
    x_GSD = torch.cat([model.embed_noisy(latent_CFHW) for latent_CFHW in latent_BCFHW])
    known = {t: model.encode_time(t) for t in sorted(set(timesteps))}
    rows_G6D = _per_frame([known[t].block_6D for t in timesteps], num_frames)
    head_GD = _per_frame([known[t].head_D for t in timesteps], num_frames)
    injectors = {layer: i for i, layer in enumerate(model.config.audio_inject_layers)}
    for layer, block in enumerate(model.layers):
        attention = _WindowAttention(prepared, layer, model.config.latents_per_block)
        x_GSD = block(x_GSD, rows_G6D, attention, prepared.text[layer])
        if layer in injectors:
            x_GSD = x_GSD + model.audio_injector(injectors[layer], x_GSD, prepared.audio)
    patches = model.head(x_GSD, head_GD).split(num_frames)
    return torch.stack([
        model.unpatchify(p, like) for p, like in zip(patches, latent_BCFHW, strict=True)
    ])  # fmt: skip


class _WindowAttention:
    """Self-attention of one layer over all blocks of all samples."""

    def __init__(self, prepared: PreparedWindow, layer: int, latents_per_block: int) -> None:
        self._prepared, self._sink = prepared, prepared.sink[layer]
        self._latents_per_block = latents_per_block

    def __call__(
        self, q_GSNd: Tensor, k_GSNd: Tensor, v_GSNd: Tensor, norms: QueryKeyNorms | None
    ) -> Tensor:
        assert norms is None, "plain kernels norm queries and keys beforehand"
        num_samples, tokens = len(self._prepared.text[0]), q_GSNd.shape[1]
        rotary = self._prepared.rotary
        q_BTNd, k_BTNd = (
            rotary.apply(x.flatten(0, 1)).unflatten(0, (num_samples, -1)) for x in (q_GSNd, k_GSNd)
        )
        v_BTNd = v_GSNd.flatten(0, 1).unflatten(0, (num_samples, -1))
        block, ring = self._latents_per_block * tokens, self._prepared.ring_frames * tokens
        heads = []
        for index, ref in enumerate(self._prepared.ref_rotaries):
            end = (index + 1) * block
            seen = slice(max(0, end - ring), end)
            keys, values = self._with_sink(k_BTNd[:, seen], v_BTNd[:, seen], ref)
            heads.append(attend_batch(q_BTNd[:, end - block : end], keys, values))
        return torch.cat(heads, dim=1).flatten(0, 1).view_as(q_GSNd)

    def _with_sink(self, k_BTNd: Tensor, v_BTNd: Tensor, ref: RotaryTable) -> tuple[Tensor, Tensor]:
        sink = self._sink
        placed = ref.apply(sink.ref_keys_BSNd.flatten(0, 1)).view_as(sink.ref_keys_BSNd)
        keys = torch.cat((k_BTNd, placed, sink.motion_keys_BTNd), dim=1)
        return keys, torch.cat((v_BTNd, sink.values_BTNd), dim=1)


class _PrefillAttention:
    """Self-attention of the condition tokens of every sample; keeps keys and values."""

    def __init__(self, ref: RotaryTable, motion: RotaryTable, num_samples: int) -> None:
        self._num_ref = ref.num_tokens
        self._rotary = _joined([_joined([ref, motion])] * num_samples)
        self.kept: SinkLayer | None = None

    def __call__(
        self, q_BTNd: Tensor, k_BTNd: Tensor, v_BTNd: Tensor, norms: QueryKeyNorms | None
    ) -> Tensor:
        assert norms is None, "plain kernels norm queries and keys beforehand"
        q, k = (self._rotary.apply(x.flatten(0, 1)).view_as(x) for x in (q_BTNd, k_BTNd))
        self.kept = SinkLayer(k_BTNd[:, : self._num_ref], k[:, self._num_ref :], v_BTNd)
        return attend_batch(q, k, v_BTNd)


def _prefill(
    model: DiT, conditions: WindowConditions, text: Sequence[Sequence[KeyValue]]
) -> tuple[SinkLayer, ...]:
    height, width = conditions.ref_BC1HW.shape[3:]
    pairs = list(zip(conditions.ref_BC1HW, conditions.motion_BCFHW, strict=True))
    x_BTD = torch.stack([model.embed_condition(ref, motion) for ref, motion in pairs])
    rows_B6D = model.encode_time(0.0).block_6D.expand(len(pairs), -1, -1)
    ref = model.ref_rotary(REF_FRAME, height, width)
    motion = model.rotary.motion(*_patches(model, height, width)).to(model.device)
    kept = []
    for layer, block in enumerate(model.layers):
        attention = _PrefillAttention(ref, motion, len(pairs))
        x_BTD = block(x_BTD, rows_B6D, attention, text[layer])
        assert attention.kept is not None
        kept.append(attention.kept)
    return tuple(kept)


def _encode_text(model: DiT, contexts: Sequence[Tensor]) -> tuple[tuple[KeyValue, ...], ...]:
    """Return keys and values per layer and sample; equal to `DiT.encode_text` of every prompt."""
    length = model.config.text_len
    padded = [functional.pad(c.to(model.dtype), (0, 0, 0, length - len(c))) for c in contexts]
    embedded_BTD = model.text_embedding(torch.stack(padded))
    each = (block.cross_attn.keys_values(embedded_BTD) for block in model.layers)
    return tuple(tuple(zip(k.unbind(), v.unbind(), strict=True)) for k, v in each)


def _encode_audio(model: DiT, features_BLEV: Tensor) -> AudioConditioning:
    """Encode the voice of every block by itself, laid end to end as one actor."""
    frames = model.config.video_frames_per_block
    blocks = features_BLEV.unflatten(3, (-1, frames)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    overall, local = model.casual_audio_encoder(blocks)
    overall_1GD, local_1GKD = overall.flatten(0, 1)[None], local.flatten(0, 1)[None]
    indices = range(len(model.config.audio_inject_layers))
    return AudioConditioning(
        tuple(model.audio_injector.prepare(i, overall_1GD, local_1GKD) for i in indices)
    )


def _patches(model: DiT, height: int, width: int) -> tuple[int, int]:
    _, patch_height, patch_width = model.config.patch_size
    return height // patch_height, width // patch_width


def _joined(tables: Sequence[RotaryTable]) -> RotaryTable:
    return RotaryTable(
        torch.cat([table.cos_TP for table in tables]), torch.cat([table.sin_TP for table in tables])
    )


def _per_frame(rows: Sequence[Tensor], num_frames: int) -> Tensor:
    return torch.stack(list(rows)).repeat_interleave(num_frames, dim=0)
