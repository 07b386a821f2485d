"""Pictures of the example portraits."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from sounds import EXAMPLES


def side_by_side(numbers: Sequence[int], side: int) -> Image.Image:
    """Return portraits of `side` pixels from left to right."""
    picture = Image.new("RGB", (len(numbers) * side, side))
    for index, number in enumerate(numbers):
        portrait = Image.open(EXAMPLES / f"portrait_{number}.png").convert("RGB")
        picture.paste(portrait.resize((side, side)), (index * side, 0))
    return picture
