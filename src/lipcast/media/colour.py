"""Colours of a picture as sRGB: embedded profiles, and what a PNG or a camera says in their place.

Input: a Pillow picture and the bytes of its file. Output: the picture in sRGB, and a note where a profile
cannot be used. A picture that is in sRGB already is returned as it is, bit for bit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Matrix = NDArray[np.float64]

_SAME = 3
"""Levels by which the colours of a profile may differ from sRGB and still be taken for it."""
_D65 = 0.3127, 0.3290
_SRGB = 0.640, 0.330, 0.300, 0.600, 0.150, 0.060
_ADOBE = 0.640, 0.330, 0.210, 0.710, 0.150, 0.060
_PRIMARIES = {
    1: _SRGB, 9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}  # fmt: skip
"""Red, green and blue (x, y) by the number of a cICP chunk: sRGB, BT.2020, Display P3."""
_SRGB_CURVES = frozenset((1, 6, 13, 14, 15))
"""Transfer functions of a cICP chunk that differ from that of sRGB by little."""
_LINEAR_CURVE = 8
_SRGB_GAMMA = 1 / 0.45455
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_EXIF, _INTEROP = 0x8769, 0xA005
_INDEX = 1
"""The tag of the interoperability index; cameras write "R03" there for Adobe RGB, and often no profile."""


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """Primaries with a power curve, or with that of sRGB."""

    primaries: tuple[float, ...] = _SRGB
    white: tuple[float, float] = _D65
    gamma: float | None = None
    """None: the curve of sRGB."""

    def to_srgb(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return [H, W, 3] in sRGB, clipped to what it has."""
        levels = np.arange(256) / 255
        linear = _decoded(levels) if self.gamma is None else levels**self.gamma
        matrix = np.linalg.inv(_to_xyz(_SRGB, _D65)) @ _adapted(self.white) @ self._xyz()
        mixed = linear[rgb] @ matrix.T
        return np.rint(255 * _encoded(mixed.clip(0, 1))).astype(np.uint8)

    def _xyz(self) -> Matrix:
        return _to_xyz(self.primaries, self.white)


def in_srgb(image: Image, content: bytes = b"") -> tuple[Image, str]:
    """Return a picture of any mode in sRGB, and what to say of its profile ("" for nothing)."""
    profile = image.info.get("icc_profile")
    if profile and (image.mode == "F" or image.mode.startswith("I")):
        return image, ""  # grey of more than 8 bits is scaled later
    if profile:
        try:
            return _by_profile(image, profile), ""
        except Exception as error:  # Pillow raises at least four types on broken profiles
            return (
                image,
                f"its colour profile cannot be used ({error}); its colours are taken for sRGB",
            )
    space, note = _stated_space(image, content)
    if space is None or image.mode not in {"RGB", "RGBA", "P", "L", "LA"}:
        return image, note
    layer, alpha = _without_alpha(image, "RGB")
    converted = _like(space.to_srgb(np.asarray(layer)))
    return _with_alpha(converted, alpha), note


def _by_profile(image: Image, profile: bytes) -> Image:
    """Return a picture converted by its ICC profile. Raises what Pillow raises for a broken one."""
    from PIL import ImageCms

    source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
    if mode is None:
        raise ValueError(f"it is for {space} pictures")
    has_colour = image.mode not in {"1", "L", "LA", "La", "I", "F"} and not image.mode.startswith(
        "I;"
    )
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and has_colour):
        raise ValueError(f"it is for {space} pictures, and this one is {image.mode}")
    layer, alpha = _without_alpha(image, mode)
    target = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(
        source, target, mode, "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if mode in {"L", "RGB"} and _is_srgb(transform, mode):
        return image
    converted = ImageCms.applyTransform(layer, transform)
    assert converted is not None, "not in place"
    return _with_alpha(converted, alpha)


def _is_srgb(transform: Any, mode: str) -> bool:
    """Return whether a transform to sRGB changes next to nothing, on a grid of colours."""
    from PIL import ImageCms

    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(64, 64, 3)
    if mode == "L":
        grid = np.repeat(grid[..., :1], 3, axis=2)
    chart = _like(grid if mode == "RGB" else np.ascontiguousarray(grid[..., 0]))
    found = np.asarray(ImageCms.applyTransform(chart, transform)).astype(int)
    return bool(np.abs(found - grid).max() <= _SAME)


def _without_alpha(image: Image, mode: str) -> tuple[Image, Image | None]:
    """Return a picture in a mode, and its transparency where it has one."""
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode), None
    plain = image.convert("LA") if image.mode == "La" else image
    layers = plain.convert("RGBA")
    return layers.convert(mode), layers.getchannel("A")


def _with_alpha(image: Image, alpha: Image | None) -> Image:
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _like(pixels: NDArray[np.uint8]) -> Image:
    from PIL import Image as PILImage

    return PILImage.fromarray(pixels)


def _stated_space(image: Image, content: bytes) -> tuple[ColourSpace | None, str]:
    """Return the colour space that a file without a profile names, if it is another than sRGB; and a note."""
    if image.format == "PNG":
        return _of_png(image, content)
    try:
        index = image.getexif().get_ifd(_EXIF) and image.getexif().get_ifd(_INTEROP).get(_INDEX)
    except Exception:  # a malformed EXIF block must not cost the picture
        return None, ""
    if str(index).strip("\0 ") == "R03":
        return ColourSpace(_ADOBE, gamma=563 / 256), ""
    return None, ""


def _of_png(image: Image, content: bytes) -> tuple[ColourSpace | None, str]:
    """Read the chunks cICP, sRGB, gAMA and cHRM, in this order, as the standard has it."""
    if code := _code_points(content):
        primaries, curve = code
        known = _PRIMARIES.get(primaries)
        if known is None or (curve not in _SRGB_CURVES and curve != _LINEAR_CURVE):
            return (
                None,
                "its colours are those of a high dynamic range or rare display and are taken for sRGB",
            )
        gamma = 1.0 if curve == _LINEAR_CURVE else None
        return None if (known, gamma) == (_SRGB, None) else ColourSpace(known, gamma=gamma), ""
    stated = image.info.get("gamma")
    if "srgb" in image.info or not stated or not 0.1 <= stated <= 10:
        return None, ""
    found = image.info.get("chromaticity")
    white, primaries_xy = (found[:2], found[2:]) if found else (_D65, _SRGB)
    is_srgb = np.allclose((*white, *primaries_xy), (*_D65, *_SRGB), atol=0.005)
    if is_srgb and abs(1 / stated - _SRGB_GAMMA) < 0.05:
        return None, ""
    if not _is_possible(white, primaries_xy):
        return None, "its colours are stated in numbers that cannot be; they are taken for sRGB"
    return ColourSpace(tuple(primaries_xy), tuple(white), 1 / stated), ""


def _code_points(content: bytes) -> tuple[int, int] | None:
    """Return primaries and curve of a PNG's cICP chunk."""
    at = content.find(b"\0\0\0\4cICP", 0, content.find(b"IDAT") + 1)
    return (content[at + 8], content[at + 9]) if at >= 0 and len(content) > at + 9 else None


def _is_possible(white: Any, primaries: Any) -> bool:
    """Return whether chromaticities span a triangle, with the white in it."""
    if min(white[1], *primaries[1::2]) <= 0:
        return False
    corners = np.array([*primaries]).reshape(3, 2)
    sides = np.linalg.det(np.vstack([corners.T, np.ones(3)]))
    if abs(sides) < 1e-3:
        return False
    weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), [*white, 1.0])
    return bool((weights > 0).all())


def _to_xyz(primaries: tuple[float, ...], white: tuple[float, float]) -> Matrix:
    """Return the matrix from linear RGB to XYZ."""
    columns = np.array([_xyz(x, y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    scales = np.linalg.solve(columns, _xyz(*white))
    return np.asarray(columns * scales)


def _adapted(white: tuple[float, float]) -> Matrix:
    """Return the matrix from XYZ under a white to XYZ under D65 (Bradford)."""
    gains = (_BRADFORD @ _xyz(*_D65)) / (_BRADFORD @ _xyz(*white))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD)


def _xyz(x: float, y: float) -> Matrix:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _decoded(encoded: Matrix) -> Matrix:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _encoded(linear: Matrix) -> Matrix:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
