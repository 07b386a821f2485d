"""Who is drawn: the looks of a person and the picture around them, drawn by lot from a seed.

Lengths are in half widths of the face; colours are RGB in 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

Rgb = tuple[float, float, float]
_Value = TypeVar("_Value")
Hair = Literal[
    "shaved", "crew", "parted", "quiff", "curly", "afro", "bob", "fringe", "long", "wavy", "bun",
    "ponytail", "scarf",
]  # fmt: skip
Clothes = Literal["crew neck", "v-neck", "shirt", "blazer", "turtleneck", "hoodie", "blouse"]
Glasses = Literal["none", "round", "square", "cat", "rimless"]
Beard = Literal["none", "stubble", "beard", "moustache"]
Scene = Literal["plain", "glow", "bokeh", "stripes", "room", "window", "hills", "photo"]

_SKINS: tuple[Rgb, ...] = (
    (0.98, 0.85, 0.76), (0.96, 0.79, 0.67), (0.92, 0.73, 0.59), (0.87, 0.67, 0.51), (0.78, 0.57, 0.41),
    (0.68, 0.47, 0.33), (0.55, 0.37, 0.26), (0.43, 0.28, 0.20), (0.34, 0.22, 0.16),
)  # fmt: skip
_HAIRS: tuple[Rgb, ...] = (
    (0.09, 0.07, 0.07), (0.16, 0.11, 0.09), (0.26, 0.16, 0.10), (0.37, 0.23, 0.13), (0.48, 0.30, 0.16),
    (0.62, 0.43, 0.22), (0.80, 0.62, 0.36), (0.90, 0.78, 0.55), (0.55, 0.22, 0.10), (0.66, 0.31, 0.14),
    (0.60, 0.58, 0.57), (0.82, 0.81, 0.80),
)  # fmt: skip
_DYES: tuple[Rgb, ...] = ((0.72, 0.33, 0.47), (0.24, 0.42, 0.58), (0.45, 0.30, 0.58))
_IRISES: tuple[Rgb, ...] = (
    (0.25, 0.14, 0.08), (0.36, 0.21, 0.10), (0.46, 0.32, 0.14), (0.33, 0.42, 0.22), (0.25, 0.46, 0.60),
    (0.38, 0.55, 0.70), (0.42, 0.48, 0.50),
)  # fmt: skip
_PALETTES: tuple[tuple[Rgb, Rgb], ...] = (
    ((0.93, 0.90, 0.84), (0.80, 0.74, 0.66)), ((0.76, 0.86, 0.88), (0.52, 0.68, 0.74)),
    ((0.95, 0.83, 0.76), (0.86, 0.65, 0.58)), ((0.80, 0.86, 0.76), (0.58, 0.69, 0.56)),
    ((0.88, 0.84, 0.92), (0.67, 0.61, 0.77)), ((0.97, 0.90, 0.70), (0.90, 0.75, 0.45)),
    ((0.30, 0.36, 0.44), (0.16, 0.20, 0.28)), ((0.26, 0.38, 0.37), (0.13, 0.23, 0.24)),
    ((0.72, 0.77, 0.82), (0.45, 0.52, 0.60)), ((0.46, 0.33, 0.36), (0.26, 0.17, 0.22)),
    ((0.90, 0.90, 0.90), (0.72, 0.73, 0.75)), ((0.99, 0.76, 0.62), (0.55, 0.44, 0.62)),
)  # fmt: skip
_CLOTHES: tuple[Rgb, ...] = (
    (0.18, 0.24, 0.36), (0.14, 0.15, 0.18), (0.93, 0.93, 0.91), (0.62, 0.20, 0.22), (0.20, 0.38, 0.34),
    (0.80, 0.60, 0.24), (0.36, 0.48, 0.62), (0.72, 0.52, 0.56), (0.46, 0.42, 0.38), (0.85, 0.80, 0.70),
    (0.42, 0.30, 0.48), (0.83, 0.44, 0.34), (0.52, 0.60, 0.48),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variety:
    """How far pictures go from clean drawings towards photographs; 0 switches a thing off."""

    photo_share: float = 0.35
    """Share of the people who are drawn like photographs: skin, grain, backgrounds, a camera's blur."""
    beard_share: float = 0.12
    glasses_share: float = 0.25
    light: float = 1.0
    """Strength and direction of the light."""


@dataclass(frozen=True, slots=True)
class Proportions:
    """Where the parts of a face are, and how large."""

    head: float
    """Half width of the face in half sides of the picture."""
    centre: tuple[float, float]
    jaw: float
    chin: float
    hairline: float
    parting: float
    volume: float
    eye_spread: float
    eye_width: float
    eye_height: float
    eye_y: float
    eye_slant: float
    brow_y: float
    brow_weight: float
    nose_width: float
    nose_y: float
    mouth_y: float
    mouth_width: float
    lip_weight: float
    smile: float
    """Corners of the mouth at rest."""
    blush: float
    freckles: float
    lashes: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Light and camera."""

    light: tuple[float, float, float]
    """Direction x and y, and strength."""
    warmth: float
    skin_texture: float
    grain: float
    blur: float
    vignette: float


@dataclass(frozen=True, slots=True)
class Person:
    """One identity. The same seed and index always give the same one."""

    noise_seed: int
    skin: Rgb
    hair_colour: Rgb
    iris: Rgb
    lips: Rgb
    clothes_colour: Rgb
    second_colour: Rgb
    background: tuple[Rgb, Rgb]
    hair: Hair
    clothes: Clothes
    glasses: Glasses
    beard: Beard
    scene: Scene
    frame_colour: Rgb
    earrings: bool
    necklace: bool
    face: Proportions
    finish: Finish


def person(seed: int, index: int, variety: Variety | None = None) -> Person:
    """Return the person of a number; people of different numbers have nothing in common."""
    variety = variety or Variety()
    rng = np.random.default_rng((seed, index, 1))
    photo = bool(rng.random() < variety.photo_share)
    feminine = bool(rng.random() < 0.5)
    skin_index = int(rng.integers(len(_SKINS)))
    skin = _tinted(rng, _SKINS[skin_index])
    hair = _hair(rng, feminine=feminine)
    return Person(
        noise_seed=int(rng.integers(2**31)),
        skin=skin,
        hair_colour=_hair_colour(rng, hair, dark=skin_index > 4),
        iris=_near(rng, _IRISES[int(rng.integers(3 if skin_index > 4 else len(_IRISES)))], 0.02),
        lips=_lips(rng, skin, feminine=feminine),
        clothes_colour=_near(rng, _pick(rng, _CLOTHES), 0.04),
        second_colour=_near(rng, _pick(rng, _CLOTHES), 0.04),
        background=_background(rng),
        hair=hair,
        clothes=_clothes(rng, feminine=feminine),
        glasses=_glasses(rng, variety.glasses_share),
        beard=_beard(rng, variety.beard_share, feminine=feminine or hair == "scarf"),
        scene="photo" if photo and rng.random() < 0.6 else _pick(rng, get_args(Scene)[:-1]),
        frame_colour=_pick(rng, ((0.08, 0.07, 0.08), (0.30, 0.16, 0.08), (0.12, 0.16, 0.28),
                                 (0.55, 0.42, 0.20), (0.45, 0.10, 0.14))),
        earrings=bool(feminine and rng.random() < 0.45),
        necklace=bool(feminine and rng.random() < 0.3),
        face=_proportions(rng, feminine=feminine),
        finish=_finish(rng, variety, photo=photo),
    )  # fmt: skip


def _proportions(rng: np.random.Generator, *, feminine: bool) -> Proportions:
    between = rng.uniform
    return Proportions(
        head=between(0.40, 0.50),
        centre=(between(-0.06, 0.06), between(-0.06, 0.04)),
        jaw=between(0.56, 0.68) if feminine else between(0.62, 0.76),
        chin=between(1.16, 1.28) if feminine else between(1.22, 1.34),
        hairline=between(-0.82, -0.64),
        parting=between(-0.45, 0.45),
        volume=between(0.7, 1.3),
        eye_spread=between(0.39, 0.45),
        eye_width=between(0.185, 0.225),
        eye_height=between(0.095, 0.135) * (1.08 if feminine else 0.95),
        eye_y=between(-0.06, 0.04),
        eye_slant=between(-0.06, 0.10),
        brow_y=between(-0.31, -0.25),
        brow_weight=between(0.028, 0.042) if feminine else between(0.042, 0.062),
        nose_width=between(0.13, 0.20),
        nose_y=between(0.38, 0.46),
        mouth_y=between(0.72, 0.80),
        mouth_width=between(0.33, 0.41),
        lip_weight=between(0.9, 1.25) if feminine else between(0.65, 0.95),
        smile=between(0.10, 0.30),
        blush=between(0.2, 0.9) if feminine else between(0.0, 0.5),
        freckles=between(0.3, 0.9) if rng.random() < 0.12 else 0.0,
        lashes=between(0.6, 1.0) if feminine else between(0.0, 0.25),
    )


def _finish(rng: np.random.Generator, variety: Variety, *, photo: bool) -> Finish:
    angle = rng.uniform(-2.6, -0.5)
    strength = variety.light * (rng.uniform(0.9, 1.7) if photo else rng.uniform(0.5, 1.1))
    return Finish(
        light=(float(np.cos(angle)), float(np.sin(angle)), strength),
        warmth=variety.light * rng.normal(0, 0.05 if photo else 0.015),
        skin_texture=rng.uniform(0.4, 1.0) if photo else 0.0,
        grain=rng.uniform(0.004, 0.02) if photo else 0.0,
        blur=rng.uniform(0.0, 0.9) if photo else 0.0,
        vignette=rng.uniform(0.0, 0.35) if photo else 0.0,
    )


def _near(rng: np.random.Generator, rgb: Rgb, spread: float) -> Rgb:
    red, green, blue = np.clip(np.array(rgb) + rng.normal(0, spread, 3), 0.02, 0.99).tolist()
    return red, green, blue


def _tinted(rng: np.random.Generator, skin: Rgb) -> Rgb:
    """Return the skin lighter or darker, more rosy or more golden."""
    light = rng.uniform(0.95, 1.03)
    rosy = rng.uniform(-0.02, 0.02)
    return min(0.99, skin[0] * light), skin[1] * light * (1 - rosy), skin[2] * light * (1 + rosy)


def _pick(rng: np.random.Generator, values: tuple[_Value, ...]) -> _Value:
    return values[int(rng.integers(len(values)))]


def _hair(rng: np.random.Generator, *, feminine: bool) -> Hair:
    names: tuple[Hair, ...] = (
        ("bob", "fringe", "long", "wavy", "long", "bun", "ponytail", "curly", "afro", "scarf", "parted")
        if feminine
        else ("crew", "parted", "quiff", "curly", "crew", "parted", "shaved", "afro", "quiff")
    )  # fmt: skip
    return _pick(rng, names)


def _hair_colour(rng: np.random.Generator, hair: Hair, *, dark: bool) -> Rgb:
    if hair == "scarf":
        return _near(rng, _pick(rng, _CLOTHES), 0.04)
    if rng.random() < 0.04:
        return _pick(rng, _DYES)
    return _near(rng, _pick(rng, _HAIRS[:4] if dark else _HAIRS), 0.015)


def _lips(rng: np.random.Generator, skin: Rgb, *, feminine: bool) -> Rgb:
    natural = np.array(skin) * (0.84, 0.60, 0.60) + (0.05, 0.0, 0.01)
    paint = np.array(_pick(rng, ((0.72, 0.20, 0.24), (0.78, 0.36, 0.38), (0.60, 0.22, 0.30))))
    share = rng.uniform(0.25, 0.7) if feminine and rng.random() < 0.6 else 0.12
    red, green, blue = (natural * (1 - share) + paint * share).tolist()
    return red, green, blue


def _background(rng: np.random.Generator) -> tuple[Rgb, Rgb]:
    first, second = _pick(rng, _PALETTES)
    return _near(rng, first, 0.02), _near(rng, second, 0.02)


def _clothes(rng: np.random.Generator, *, feminine: bool) -> Clothes:
    return _pick(rng, get_args(Clothes)[: 7 if feminine else 6])


def _glasses(rng: np.random.Generator, share: float) -> Glasses:
    return _pick(rng, get_args(Glasses)[1:]) if rng.random() < share else "none"


def _beard(rng: np.random.Generator, share: float, *, feminine: bool) -> Beard:
    if feminine or rng.random() >= 2 * share:
        return "none"
    return _pick(rng, ("stubble", "stubble", "beard", "moustache"))
