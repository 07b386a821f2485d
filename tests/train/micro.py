"""The smallest preset: every phase takes a few steps."""

from __future__ import annotations

from dataclasses import replace

from lipcast_train.presets import SMOKE, Preset
from lipcast_train.training.loop import Recipe


def micro(num_steps: int = 2) -> Preset:
    recipe = Recipe(num_steps, 2, 1e-3)
    return replace(
        SMOKE, name="micro", clip_frames=24, num_clips=2, held_out=1, speech=recipe,
        autoencoder=recipe, decoder=recipe, transformer=recipe, few_steps=recipe,
        footage_lengths=(9,), window_frames=6, autoencoder_of="",
        sizes=replace(SMOKE.sizes, vae={"dim": 8}),
    )  # fmt: skip
