"""Fallbacks by name, to be taken in the user's order when memory runs out.

Input: a list such as "kv_streamed, infer_frames=32". Output: `Fallback`s. Raises UsageError.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipcast.config.generate_options import GenerateOptions, parse_size
from lipcast.errors import UsageError

KEEPING = (
    "online_decode",
    "graphs_off",
    "kv_streamed",
    "weights_streamed",
    "kv_fp8",
    "tiling",
    "offload",
)
"""Fallbacks that keep the video, apart from rounding."""
CHANGING = ("infer_frames", "size", "sample_steps")
"""Fallbacks that change the video; each needs a value."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """One fallback: a name, and a value where the name needs one ("infer_frames", "32")."""

    name: str
    value: str = ""

    @property
    def keeps_the_picture(self) -> bool:
        """Whether the video stays the same, apart from rounding."""
        return self.name in KEEPING

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


def parse_fallbacks(text: str) -> tuple[Fallback, ...]:
    """Return the fallbacks of a list such as "kv_streamed, infer_frames=32, size=384*256", in its order."""
    return tuple(_parse_fallback(word.strip()) for word in text.split(",") if word.strip())


def _parse_fallback(text: str) -> Fallback:
    name, _, value = (part.strip() for part in text.partition("="))
    wants_value = name in CHANGING
    if name not in KEEPING + CHANGING or wants_value != bool(value):
        known = ", ".join((*KEEPING, *(f"{name}=…" for name in CHANGING)))
        raise UsageError(f'fallback: expected some of {known}, got "{text}"')
    if name == "size":
        parse_size(value)
    elif wants_value:
        _check_number(name, value)
    return Fallback(name, value)


def _check_number(name: str, value: str) -> None:
    """Refuse what generation refuses."""
    if not value.isdecimal():
        raise UsageError(f"fallback: expected {name}=<whole number>, got {name}={value}")
    if name == "infer_frames":
        GenerateOptions(infer_frames=int(value))
    else:
        GenerateOptions(sample_steps=int(value))
