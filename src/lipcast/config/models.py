"""The configurations of the four networks, read from a checkpoint's own JSON files.

Inputs: the parsed JSON of `config.json`, `vae_config.json`, `t5_config.json`, `wav2vec2*/config.json`.
Outputs: frozen dataclasses; everything that can be derived from them is a property.
Where a published checkpoint has no file for a network, the defaults here are the published model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from lipcast.errors import CheckpointError

VIDEO_FPS = 25
VIDEO_FRAMES_PER_LATENT = 4
"""Video frames of a latent frame; the first of a video has one."""
MotionEncoding = Literal["video", "repeat"]
SAMPLE_RATE = 16_000
"""Sampling rate of the speech encoder's input, in Hz."""

_WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def _pick(
    cls: type, source: Mapping[str, Any], renames: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of `cls` that `source` holds; lists become tuples."""
    renames = renames or {}
    found: dict[str, Any] = {}
    for item in fields(cls):
        key = renames.get(item.name, item.name)
        if key in source:
            value = source[key]
            found[item.name] = tuple(value) if isinstance(value, list) else value
    return found


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """The block-causal speech-to-video transformer (defaults: Wan2.2-S2V-14B)."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    cond_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    audio_dim: int = 1024
    num_audio_layers: int = 25
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    motion_frames: int = 73
    latents_per_block: int = 3
    """Latent frames of one block (`num_frames_per_block` in a checkpoint)."""
    eps: float = 1e-6
    sample_steps: int = 4
    sample_shift: float = 3.0
    infer_frames: int = 48
    motion_encoding: MotionEncoding = "video"
    """What stands for the past before the first frame: the latents of the portrait held still ("video",
    as the published model), or its third latent throughout ("repeat", as some were trained)."""
    width: int = 0
    height: int = 0
    """Trained picture size in pixels; 0: any."""

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> Self:
        """Read the official keys; raise CheckpointError for a variant that this model is not."""
        wanted = {
            "model_type": "s2v", "qk_norm": True, "cross_attn_norm": True, "enable_adain": True,
            "adain_mode": "attn_norm", "zero_timestep": True, "enable_framepack": True,
            "enable_motioner": False, "framepack_drop_mode": "padd", "enable_tsm": False,
        }  # fmt: skip
        for key, value in wanted.items():
            if source.get(key, value) != value:
                raise CheckpointError(
                    f"config.json: expected {key} = {value!r}, got {source[key]!r}; "
                    "this is not a Live Avatar (Wan2.2-S2V) checkpoint"
                )
        config = cls(**_pick(cls, source, {"latents_per_block": "num_frames_per_block"}))
        config.check()
        return config

    def check(self) -> None:
        """Raise CheckpointError where the numbers contradict each other."""
        if self.dim % self.num_heads:
            raise CheckpointError(
                f"config.json: dim {self.dim} is not divisible by num_heads {self.num_heads}"
            )
        if self.motion_encoding not in ("video", "repeat"):
            raise CheckpointError(
                "config.json: expected motion_encoding video or repeat, "
                f"got {self.motion_encoding!r}"
            )
        if self.patch_size[0] != 1:
            raise CheckpointError(
                f"config.json: expected patch_size (1, h, w), got {self.patch_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def video_frames_per_block(self) -> int:
        return VIDEO_FRAMES_PER_LATENT * self.latents_per_block

    @property
    def motion_latents(self) -> int:
        """Latents of `motion_frames` video frames; the first is of one frame."""
        return 1 + (self.motion_frames - 1) // VIDEO_FRAMES_PER_LATENT


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """The causal video autoencoder of Wan 2.1."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = _WAN_LATENT_MEAN
    std: tuple[float, ...] = _WAN_LATENT_STD

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> Self:
        # The checkpoint spells it "temperal".
        return cls(**_pick(cls, source, {"temporal_downsample": "temperal_downsample"}))

    @property
    def spatial_factor(self) -> int:
        return int(2 ** len(self.temporal_downsample))

    @property
    def temporal_factor(self) -> int:
        return int(2 ** sum(self.temporal_downsample))


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The UMT5 encoder (defaults: umt5-xxl)."""

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_dist: int = 128
    eps: float = 1e-6
    text_len: int = 512
    tokenizer: str = ""
    """Empty: the tokenizer files of the checkpoint. "ByT5 …": bytes + 3."""

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_pick(cls, source))

    @property
    def byte_tokens(self) -> bool:
        return self.tokenizer.startswith("ByT5")


@dataclass(frozen=True, slots=True)
class SpeechShape:
    """The sizes of a wav2vec2 encoder with the keys of its config.json (defaults: large XLSR)."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_pick(cls, source))


@dataclass(frozen=True, slots=True)
class Models:
    """The configurations of the four networks (defaults: the published 14B)."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    speech: SpeechShape = field(default_factory=SpeechShape)
