"""The block-causal speech-to-video transformer of Live Avatar (on Wan2.2-S2V).

Its forward takes lanes: blocks of noisy latents, each at its own denoising step, each with its own KV
ring. Linear layers run over the tokens of all lanes together, attention runs lane by lane. What does
not depend on the noise is computed beforehand: text keys once per prompt, time rows once per step,
audio once per block, the sink once per reference. Parameter names are those of the checkpoint.

Legend: C latent channels, F latent frames of a lane, G latent frames of all lanes, H W latent size,
S tokens per latent frame, T tokens, D model width, N heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcast.config.models import DiTConfig
from lipcast.models.attention import KeyValue, attend
from lipcast.models.audio import AudioConditioning, AudioInjector, CausalAudioEncoder, join_audio
from lipcast.models.kernels.plain import Affine, Kernels, Modulation, Remembered, RowFormat
from lipcast.models.kv_ring import KVRing
from lipcast.models.layers import AttentionProjections, QueryKeyNorms, conv32, linear32
from lipcast.models.motion import FramePacker
from lipcast.models.quant_formats import Rows
from lipcast.models.rope import REF_FRAME, Rotary, RotaryTable, time_sinusoid
from lipcast.models.sink import PlacedSink, Sink, SinkLayout, SinkPlanes
from lipcast.planning.tensors import WeightUse

_NOISY_ROW, _REF_ROW, _MOTION_ROW = 0, 1, 2
"""Rows of the condition-mask embedding."""

SelfAttend = Callable[[Tensor, Tensor, Tensor, "QueryKeyNorms | None"], Tensor]
"""(q_GSNd, k_GSNd, v_GSNd, norms) -> o_GSNd; the norms, if any, are still to be applied to q and k."""
WeightHook = Callable[[WeightUse, int], None]
"""Called with (use, layer) before weights of a layer are used: whoever keeps them elsewhere fetches them."""


@dataclass(frozen=True, slots=True)
class TimeRows:
    """The timestep as modulation rows, float32: for the head [D], for the blocks [6, D]."""

    head_D: Tensor
    block_6D: Tensor


@dataclass(frozen=True, slots=True)
class BlockConditions:
    """Conditioning that every denoising step of one block shares."""

    first_frame: int
    rotary: RotaryTable
    sink: PlacedSink
    text: tuple[KeyValue, ...]
    audio: AudioConditioning
    pose_FSD: Tensor | None = None
    """Tokens of a pose, with the encoder's bias; None: without a pose, the bias alone."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One block at one denoising step, ready to be computed."""

    latent_CFHW: Tensor
    time: TimeRows
    ring: KVRing
    conditions: BlockConditions


class DiT(nn.Module):
    """`forward(lanes)` gives the flow velocity of every lane; the rest prepares what lanes carry."""

    def __init__(self, config: DiTConfig, *, half_precision_rope: bool = False) -> None:
        super().__init__()
        self.config = config
        self.ensure_resident: WeightHook = _nothing_to_bring
        self.rotary = Rotary(config.head_dim, half_precision_tables=half_precision_rope)
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=patch, stride=patch)
        self.cond_encoder = nn.Conv3d(config.cond_dim, dim, kernel_size=patch, stride=patch)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.frame_packer = FramePacker(config.in_dim, dim)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.casual_audio_encoder = CausalAudioEncoder(config)
        self.audio_injector = AudioInjector(config)
        self.kernels = Kernels()

    @property
    def layers(self) -> list[TransformerBlock]:
        """The transformer blocks."""
        return cast("list[TransformerBlock]", list(self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def encode_text(self, context_TC: Tensor) -> tuple[KeyValue, ...]:
        """Compute keys and values of the prompt for every block; called once per prompt.

        The context is padded with zeros to the text length before its embedding; the padding
        rows then take part in attention, as they did in training.
        """
        missing = self.config.text_len - context_TC.shape[0]
        assert missing >= 0, "the context is longer than the text length"
        padded = functional.pad(context_TC.to(self.dtype), (0, 0, 0, missing))
        embedded_TD = self.text_embedding(padded)
        each = self._each_layer("prompt")
        return tuple(block.cross_attn.keys_values(embedded_TD) for _, block in each)

    def encode_time(self, timestep: float) -> TimeRows:
        """Return the modulation rows of one timestep; called once per step of a schedule."""
        t = torch.tensor([timestep], dtype=torch.float32, device=self.device)
        hidden = time_sinusoid(t, self.config.freq_dim)[0]
        hidden = functional.silu(linear32(cast(nn.Linear, self.time_embedding[0]), hidden))
        head_D = linear32(cast(nn.Linear, self.time_embedding[2]), hidden)
        rows = linear32(cast(nn.Linear, self.time_projection[1]), functional.silu(head_D))
        return TimeRows(head_D, rows.unflatten(0, (6, -1)))

    def encode_audio(
        self, features_ALCV: Tensor, mask_AFS: Tensor | None = None, *, scale: float = 1.0
    ) -> AudioConditioning:
        """Encode the voice of one block; called once per block. Inputs as of `CausalAudioEncoder.scaled`."""
        overall_AFD, local_AFKD = self.casual_audio_encoder.scaled(features_ALCV, scale)
        prepared = []
        for index, layer in enumerate(self.config.audio_inject_layers):
            self.ensure_resident("audio", layer)
            prepared.append(self.audio_injector.prepare(index, overall_AFD, local_AFKD))
        return AudioConditioning(tuple(prepared), mask_AFS)

    def encode_pose(self, pose_CFHW: Tensor) -> Tensor:
        """Return the tokens [F, S, D] of a block's pose latents; called once per block."""
        return conv32(self.cond_encoder, pose_CFHW).flatten(2).permute(1, 2, 0)

    def sink_layout(self, latent_height: int, latent_width: int) -> SinkLayout:
        """Return what a sink for pictures of this size holds."""
        height, width = self._patches(latent_height, latent_width)
        num_motion = self.rotary.motion(height, width).num_tokens
        config = self.config
        return SinkLayout(height * width, num_motion, config.num_heads, config.head_dim, self.dtype)

    def prefill(
        self, ref_C1HW: Tensor, motion_CFHW: Tensor, text: tuple[KeyValue, ...], sink: Sink
    ) -> None:
        """Run the condition tokens [reference | motion] at time zero; `sink` keeps keys and values."""
        height, width = self._patches(*ref_C1HW.shape[2:])
        x_1TD = self.embed_condition(ref_C1HW, motion_CFHW)[None]
        ref = self.rotary.video(REF_FRAME, 1, height, width).to(self.device)
        motion = self.rotary.motion(height, width).to(self.device)
        rows_16D = self.encode_time(0.0).block_6D[None]
        for layer, block in self._each_layer("tick"):
            x_1TD = block(x_1TD, rows_16D, _SinkAttention(layer, sink, ref, motion), [text[layer]])

    def block_rotary(self, first_frame: int, latent_height: int, latent_width: int) -> RotaryTable:
        """Return the positions of one block's tokens."""
        frames = self.config.latents_per_block
        patches = self._patches(latent_height, latent_width)
        return self.rotary.video(first_frame, frames, *patches).to(self.device)

    def ref_rotary(self, frame: int, latent_height: int, latent_width: int) -> RotaryTable:
        """Return the positions of the reference placed at `frame`."""
        patches = self._patches(latent_height, latent_width)
        return self.rotary.video(frame, 1, *patches).to(self.device)

    def _patches(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Return the number of rows and of columns of tokens."""
        _, patch_height, patch_width = self.config.patch_size
        return latent_height // patch_height, latent_width // patch_width

    def forward(self, lanes: Sequence[Lane]) -> list[Tensor]:
        """Return velocities_CFHW, one per lane. Rings of the lanes are written; lanes have equal S."""
        x_GSD = torch.cat(
            [self.embed_noisy(lane.latent_CFHW, lane.conditions.pose_FSD) for lane in lanes]
        )
        frames = [lane.latent_CFHW.shape[1] for lane in lanes]
        times = list(zip((lane.time for lane in lanes), frames, strict=True))
        rows_G6D = torch.cat([_per_frame(time.block_6D, count) for time, count in times])
        head_GD = torch.cat([_per_frame(time.head_D, count) for time, count in times])
        audio = join_audio([lane.conditions.audio for lane in lanes])
        injectors = {layer: i for i, layer in enumerate(self.config.audio_inject_layers)}
        for layer, block in self._each_layer("tick"):
            text = [lane.conditions.text[layer] for lane in lanes]
            self_attend = _StreamAttention(layer, lanes, frames, self.kernels)
            x_GSD = block(x_GSD, rows_G6D, self_attend, text)
            if layer in injectors:
                residual_GSD = self.audio_injector(injectors[layer], x_GSD, audio)
                x_GSD = self.kernels.add(x_GSD, residual_GSD)
        patches = zip(self.head(x_GSD, head_GD).split(frames), lanes, strict=True)
        return [self.unpatchify(p, lane.latent_CFHW) for p, lane in patches]

    def _each_layer(self, use: WeightUse) -> Iterator[tuple[int, TransformerBlock]]:
        """Yield the layers in order, each with its weights at hand."""
        for layer, block in enumerate(self.layers):
            self.ensure_resident(use, layer)
            yield layer, block

    def embed_condition(self, ref_C1HW: Tensor, motion_CFHW: Tensor) -> Tensor:
        """Return the condition tokens_TD, [reference | motion]."""
        ref_TD, mask = conv32(self.patch_embedding, ref_C1HW).flatten(1).T, self.trainable_cond_mask
        motion_TD = self.frame_packer(motion_CFHW) + mask.weight[_MOTION_ROW]
        return torch.cat((ref_TD + mask.weight[_REF_ROW], motion_TD))

    def embed_noisy(self, latent_CFHW: Tensor, pose_FSD: Tensor | None = None) -> Tensor:
        """Return tokens_FSD. Without a pose the condition latent is zero: its encoder adds its bias only."""
        tokens_FSD = conv32(self.patch_embedding, latent_CFHW).flatten(2).permute(1, 2, 0)
        mask_D, bias_D = self.trainable_cond_mask.weight[_NOISY_ROW], self.cond_encoder.bias
        assert bias_D is not None
        if pose_FSD is None:
            return tokens_FSD + (bias_D + mask_D)
        return tokens_FSD + pose_FSD + mask_D

    def unpatchify(self, patches_FSP: Tensor, like_CFHW: Tensor) -> Tensor:
        """Turn rows of (ph, pw, c), c fastest, back into a picture."""
        _, ph, pw = self.config.patch_size
        frames, height, width = like_CFHW.shape[1:]
        grid = patches_FSP.view(frames, height // ph, width // pw, ph, pw, self.config.out_dim)
        return grid.permute(5, 0, 1, 3, 2, 4).reshape(self.config.out_dim, frames, height, width)


def apply_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Compute everything in `model` that is no matrix product of PyTorch with these operations."""
    for part in model.modules():
        if isinstance(getattr(part, "kernels", None), Kernels):
            part.__dict__["kernels"] = kernels


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; the first and last modulated by time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.self_attn = AttentionProjections(dim, config.num_heads, config.eps)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = AttentionProjections(dim, config.num_heads, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, dim),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.kernels = Kernels()

    @property
    def dtype(self) -> torch.dtype:
        """Form in which its linear layers take their input."""
        return self.norm3.weight.dtype

    def forward(
        self, x_GSD: Tensor, rows_G6D: Tensor, self_attend: SelfAttend, text: Sequence[KeyValue]
    ) -> Tensor:
        """Run one block. The residual stream is float32 throughout; linear layers run in their own dtype.

        The public implementation rounds the stream to bfloat16 after every block; on the embedded
        model that alone costs 23 dB of latents (42 against 65 dB), and float32 costs next to nothing.

        `rows_G6D`: time modulation per latent frame. `text`: keys and values of each lane's
        prompt; the lanes share the G frames equally.
        """
        rows_6G1D = (self.modulation.float() + rows_G6D).transpose(0, 1).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows_6G1D
        own, cross, ffn, kernels = self.self_attn, self.cross_attn, self.ffn, self.kernels
        # What a step is done with is let go before the next takes memory.
        first = Modulation(shift1, scale1, self.eps)
        own_rows = self._rows_for(own.q, own.k, own.v)
        branch_GSD = self._attend_self(kernels.normalise(x_GSD, first, own_rows), self_attend)
        third = Affine(self.norm3.weight, self.norm3.bias, self.eps)
        x_GSD, normed = kernels.add_normalise(
            x_GSD, branch_GSD, gate1, third, self._rows_for(cross.q)
        )
        del branch_GSD
        branch_GSD = self._attend_text(normed, text)
        del normed
        second = Modulation(shift2, scale2, self.eps)
        x_GSD, normed = kernels.add_normalise(
            x_GSD, branch_GSD, None, second, self._rows_for(ffn[0])
        )
        del branch_GSD
        hidden = ffn[0](normed)
        del normed
        hidden = kernels.gelu(hidden, self._rows_for(ffn[2]))
        hidden = ffn[2](hidden)
        return kernels.add(x_GSD, hidden, gate2)

    def _rows_for(self, *linears: nn.Module) -> RowFormat:
        return RowFormat.of(*linears, dtype=self.dtype)

    def _attend_self(self, normed: Rows, self_attend: SelfAttend) -> Tensor:
        own, late = self.self_attn, self.kernels.norms_when_rotating
        q, k, v = own.queries_keys_values(normed, joined=self.kernels.joins_products)
        if not late:
            q, k = own.norm_q(q), own.norm_k(k)
        norms = own.norms if late else None
        attended = self_attend(own.heads(q), own.heads(k), own.heads(v), norms)
        del q, k, v
        return self._output(own, attended)

    def _attend_text(self, normed: Rows, text: Sequence[KeyValue]) -> Tensor:
        cross = self.cross_attn
        q_GSNd = cross.heads(self.kernels.rms_norm(cross.q(normed), cross.norm_q))
        lanes = q_GSNd.chunk(len(text))
        heads = [attend(q.flatten(0, 1), *kv).view_as(q) for q, kv in zip(lanes, text, strict=True)]
        heads_GSNd = torch.cat(heads) if len(heads) > 1 else heads[0]
        del q_GSNd, lanes, heads
        return self._output(cross, heads_GSNd)

    def _output(self, attention: AttentionProjections, heads_GSNd: Tensor) -> Tensor:
        """Reshape [..., N, d] to [..., D]."""
        rows = self.kernels.rows(heads_GSNd.flatten(-2), self._rows_for(attention.o))
        return cast(Tensor, attention.o(rows))


class Head(nn.Module):
    """Modulated norm and a projection to patches, in float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = nn.Linear(config.dim, patch * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x_GSD: Tensor, time_GD: Tensor) -> Tensor:
        shift_GD, scale_GD = (self.modulation.float() + time_GD[:, None]).unbind(1)
        moved = Modulation(shift_GD[:, None], scale_GD[:, None], self.eps)
        return linear32(self.head, moved.apply(x_GSD))


class _StreamAttention:
    """Self-attention of one layer: every lane against its ring and its sink."""

    def __init__(
        self, layer: int, lanes: Sequence[Lane], frames: Sequence[int], kernels: Kernels
    ) -> None:
        self._layer, self._lanes = layer, lanes
        self._frames, self._kernels = list(frames), kernels

    def __call__(
        self, q_GSNd: Tensor, k_GSNd: Tensor, v_GSNd: Tensor, norms: QueryKeyNorms | None
    ) -> Tensor:
        split = zip(*(x.split(self._frames) for x in (q_GSNd, k_GSNd, v_GSNd)), strict=True)
        heads = [self._lane(lane, qkv, norms) for lane, qkv in zip(self._lanes, split, strict=True)]
        return torch.cat(heads) if len(heads) > 1 else heads[0]

    def _lane(self, lane: Lane, qkv: tuple[Tensor, ...], norms: QueryKeyNorms | None) -> Tensor:
        q_FSNd, conditions = qkv[0], lane.conditions
        next_frame = conditions.first_frame + q_FSNd.shape[0]
        remembered = Remembered(lane.ring, conditions.sink, self._layer, next_frame)
        q_TNd, k_TNd, v_TNd = (x.flatten(0, 1) for x in qkv)
        rotated_TNd = self._kernels.rotate_and_write(
            q_TNd, k_TNd, v_TNd, norms, conditions.rotary, remembered
        )
        return self._kernels.attend(rotated_TNd, remembered).view_as(q_FSNd)


class _SinkAttention:
    """Self-attention of the prefill: condition tokens among themselves, keys and values kept."""

    def __init__(self, layer: int, sink: Sink, ref: RotaryTable, motion: RotaryTable) -> None:
        self._layer, self._sink = layer, sink
        self._ref, self._motion = ref, motion

    def __call__(
        self, q_1TNd: Tensor, k_1TNd: Tensor, v_1TNd: Tensor, norms: QueryKeyNorms | None
    ) -> Tensor:
        if norms is not None:
            q_1TNd, k_1TNd = norms(q_1TNd, k_1TNd)
        num_ref = self._ref.num_tokens
        keys, values = self._rotate(k_1TNd[0]), v_1TNd[0]
        kept = SinkPlanes(k_1TNd[0, :num_ref], keys[num_ref:], values)
        self._sink.keep(self._layer, kept)
        return attend(self._rotate(q_1TNd[0]), keys, values)[None]

    def _rotate(self, x_TNd: Tensor) -> Tensor:
        ref, motion = x_TNd.split([self._ref.num_tokens, self._motion.num_tokens])
        return torch.cat((self._ref.apply(ref), self._motion.apply(motion)))


def _nothing_to_bring(use: WeightUse, layer: int) -> None:
    """Do nothing: all weights are on the device."""
    del use, layer


def _per_frame(rows: Tensor, num_frames: int) -> Tensor:
    return rows.expand(num_frames, *rows.shape)
