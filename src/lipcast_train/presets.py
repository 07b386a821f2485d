"""How large a model is and how long each of its networks is trained.

`smoke` is small enough for a CPU; its autoencoder begins from the embedded model's. `tiny` is the embedded
model's size, for one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lipcast_train.data.drawing.person import Variety
from lipcast_train.networks.build import Sizes
from lipcast_train.training.loop import Recipe


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything that decides what comes out, but the clips."""

    name: str
    sizes: Sizes
    side: int
    """Height and width of the pictures, in pixels."""
    clip_frames: int
    num_clips: int
    held_out: int
    """Clips that nothing is trained on, for the report."""
    speech: Recipe
    autoencoder: Recipe
    decoder: Recipe
    transformer: Recipe
    few_steps: Recipe
    footage_lengths: tuple[int, ...] = (17, 25, 33, 49)
    window_frames: int = 12
    """Latents of a window; the ring is as long."""
    cache_bytes: int = 8 << 30
    sample_every: int = 500
    seed: int = 0
    variety: Variety = field(default_factory=Variety)
    """Of the people who are drawn."""
    autoencoder_of: str = ""
    """Model whose autoencoder is trained further; without one it begins from nothing."""


TINY = Preset(
    name="tiny",
    sizes=Sizes(),
    side=256,
    clip_frames=96,
    num_clips=4000,
    held_out=6,
    speech=Recipe(2000, 16, 1e-3),
    autoencoder=Recipe(12000, 4, 1e-3, warmup_steps=100),
    decoder=Recipe(8000, 4, 1e-3, warmup_steps=100),
    transformer=Recipe(20000, 28, 1e-3, warmup_steps=200),
    few_steps=Recipe(2000, 28, 2e-4, warmup_steps=50),
)
SMOKE = Preset(
    name="smoke",
    sizes=Sizes(
        dit={
            "dim": 96, "ffn_dim": 192, "num_heads": 2, "num_layers": 3, "audio_inject_layers": [0, 1],
            "text_len": 32, "text_dim": 32, "audio_dim": 32, "num_audio_layers": 3, "infer_frames": 24,
            "height": 64, "width": 64,
        },
        text={"dim": 32, "dim_attn": 32, "dim_ffn": 64, "num_layers": 1, "text_len": 32},
        speech={
            "conv_dim": [16, 32, 32, 32, 32, 32, 32], "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_conv_pos_embeddings": 16,
        },
        decoder_widths=(32, 24, 16, 8),
    ),
    side=64,
    clip_frames=48,
    num_clips=16,
    held_out=2,
    speech=Recipe(80, 6, 3e-3, average=0.95),
    autoencoder=Recipe(8, 1, 5e-5, average=0.8, warmup_steps=2),
    decoder=Recipe(40, 1, 4e-3, average=0.95),
    transformer=Recipe(480, 8, 3e-3, average=0.98),
    few_steps=Recipe(10, 6, 3e-4, average=0.8),
    footage_lengths=(9, 17),
    window_frames=6,
    sample_every=0,
    variety=Variety(photo_share=0, beard_share=0),
    autoencoder_of="tiny",
)  # fmt: skip
PRESETS = {preset.name: preset for preset in (TINY, SMOKE)}
