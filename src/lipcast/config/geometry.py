"""From a picture and a wanted area to every size that generation needs.

Input: the picture's height and width, an area in pixels, the model's configs.
Output: `fit_size` (height, width) and `Geometry`, from which latents, tokens and windows derive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcast.config.models import DiTConfig, VAEConfig

SIZE_MULTIPLE = 64
_SEARCH_STEPS = 100
_ASSUMED_PADDING = 63


def fit_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Return the largest (height, width) near the picture's aspect whose product is at most `area`.

    Both are multiples of 64. The search is the public implementation's, kept because a size
    decides the latents: a scale runs down through 100 values, each side is rounded up to 64,
    the first product that fits wins. Its root uses 2ac where a quadratic has 4ac; so do we.
    """
    assert min(height, width, area) > 0
    if height * width <= area:
        smallest, largest = 0.1, 1.0
    else:
        d = _ASSUMED_PADDING
        a, b, c = height * width, d * (height + width), d * d - area
        smallest = (-b + math.sqrt(b * b - 2 * a * c)) / (2 * a)
        largest = math.sqrt(area / (height * width))
    for i in range(_SEARCH_STEPS):
        scale = largest - (largest - smallest) * i / _SEARCH_STEPS
        fitted = _round_up(int(height * scale)), _round_up(int(width * scale))
        if fitted[0] * fitted[1] <= area:
            return fitted
    return _floor_size(height, width, area)


def _round_up(pixels: int) -> int:
    return -(-pixels // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _round_down(pixels: float) -> int:
    return int(pixels // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _floor_size(height: int, width: int, area: int) -> tuple[int, int]:
    aspect = height / width
    fitted = _round_down(math.sqrt(area * aspect)), _round_down(math.sqrt(area / aspect))
    if fitted[0] >= height or fitted[1] >= width:
        fitted = _round_down(height), _round_down(width)
    return max(fitted[0], SIZE_MULTIPLE), max(fitted[1], SIZE_MULTIPLE)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every size of one video. Pixels, then latents, then tokens."""

    height: int
    width: int
    latent_height: int
    latent_width: int
    latent_channels: int
    patch_height: int
    patch_width: int
    latents_per_block: int
    """Latent frames per block."""
    window: int
    """Latent frames that self-attention sees, the current block included."""

    @classmethod
    def of(
        cls, dit: DiTConfig, vae: VAEConfig, *, height: int, width: int, infer_frames: int
    ) -> Geometry:
        """Derive all sizes; `height` and `width` are multiples of 64, `infer_frames` of 4."""
        assert height % vae.spatial_factor == 0 and width % vae.spatial_factor == 0
        latent_height, latent_width = height // vae.spatial_factor, width // vae.spatial_factor
        return cls(
            height=height,
            width=width,
            latent_height=latent_height,
            latent_width=latent_width,
            latent_channels=dit.in_dim,
            patch_height=latent_height // dit.patch_size[1],
            patch_width=latent_width // dit.patch_size[2],
            latents_per_block=dit.latents_per_block,
            window=infer_frames // vae.temporal_factor,
        )

    @property
    def tokens_per_frame(self) -> int:
        """S: tokens of one latent frame."""
        return self.patch_height * self.patch_width

    @property
    def sink_tokens(self) -> int:
        """Reference (S), newest motion frame (S), 2x (S/4) and 4x (4 S/16) packed motion."""
        s = self.tokens_per_frame
        half = (self.patch_height // 2) * (self.patch_width // 2)
        quarter = (self.patch_height // 4) * (self.patch_width // 4)
        return 2 * s + half + 4 * quarter

    @property
    def swap_block(self) -> int:
        """The first block after the first clip, where the reference is replaced."""
        return -(-self.window // self.latents_per_block)
