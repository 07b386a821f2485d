"""Several characters in one picture: where each of them is, and what each of them says.

Input: `Character`s and the portrait. Output: a mask of the portrait for each, none of which overlap; their
sounds, all of one length: silence follows where a sound ends, and stands for one that is not there.
A region is a box in pixels, a picture that is white where the character is, or a face: `face1` is leftmost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.generate_options import GenerateOptions
from lipcast.errors import InputError, UsageError
from lipcast.media.audio import AudioFile, open_audio
from lipcast.media.face_detector import FaceBox, can_find_faces, find_faces
from lipcast.media.image import fit_portrait, picture_of
from lipcast.media.voices import VoiceSource, one_length

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels of the portrait."""
Region = str | os.PathLike[str] | Box | NDArray[Any]
"""A box, "x,y,w,h", "face1", or a mask: a path or an array [H, W]."""
Masks = NDArray[np.bool_]

MAX_CHARACTERS = 4
_BOX = re.compile(r"(-?\d+),(-?\d+),(-?\d+),(-?\d+)")
_FACE = re.compile(r"face([1-9]\d*)")
_MARGIN = 0.25
"""What is added to a face on every side, in sides of its box, which ends at the brows and at the chin."""
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Character:
    """One of several characters in a picture: where it is, and what it says.

    region: a box (x, y, width, height) in pixels of the portrait, or as "x,y,w,h"; "face1", "face2": faces
    from left to right (lipcast[lab]); or a mask, white where the character is, as a file or an array [H, W].
    audio: a sound file, or what `speak` returns; None: the character says nothing.
    """

    region: Region
    audio: str | Path | AudioFile | None = None


@dataclass(frozen=True, slots=True)
class Cast:
    """The characters of one video, ready to be used once."""

    masks_AHW: Masks
    """In pixels of the portrait."""
    voices: tuple[VoiceSource, ...] = ()
    """None of a live session."""

    @property
    def size(self) -> int:
        """Number of characters."""
        return len(self.masks_AHW)

    def fit(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return the masks as the portrait lies in a video [A, height, width], 0 or 255."""
        return fit_masks(self.masks_AHW, height, width)


def open_sound(
    audio: str | Path | AudioFile | None,
    characters: Sequence[Character],
    portrait: Image,
    options: GenerateOptions,
) -> AudioFile | Cast:
    """Open what one person says, or what several characters say.

    Raises UsageError where both or neither are given, for a wrong number of characters and for regions that
    make no sense, InputError for regions that overlap, are empty or outside of the picture, and for files
    that cannot be used.
    """
    if bool(characters) == (audio is not None):
        raise UsageError(
            "audio and characters: expected one of them; give a sound for one person, or characters that "
            "have a sound each"
        )
    if isinstance(audio, AudioFile):
        return audio
    if audio is not None:
        return open_audio(audio, clean=options.clean_audio)
    masks_AHW = find_regions([character.region for character in characters], portrait, options)
    sounds = [character.audio for character in characters]
    return Cast(masks_AHW, one_length(sounds, clean=options.clean_audio))


def find_regions(regions: Sequence[Region], portrait: Image, options: GenerateOptions) -> Masks:
    """Return where each character is, [A, height, width]; raises as `open_sound` does."""
    check_number(len(regions))
    if options.crop == "face":
        raise UsageError(
            "crop: face cuts out one face, and several characters were given; use crop center"
        )
    return region_masks(regions, portrait)


def check_number(number: int) -> None:
    """Raise UsageError unless there are two to four characters."""
    if not 2 <= number <= MAX_CHARACTERS:
        raise UsageError(
            f"characters: expected 2 to {MAX_CHARACTERS}, got {number}; one person needs no region, and "
            "those who say nothing count if they are named"
        )


def region_masks(regions: Sequence[Region], portrait: Image) -> Masks:
    """Return where each region is in the portrait, [A, height, width]. Raises UsageError, InputError."""
    faces = _face_boxes([str(region) for region in regions if _is_face(region)], portrait)
    names, masks = [_name(region) for region in regions], []
    for region, name in zip(regions, names, strict=True):
        masks.append(faces[name] if _is_face(region) else _read_region(region, portrait))
        if not masks[-1].any():
            raise InputError(f"{name}: this region is empty; draw the character white on black")
    _check_apart(masks, names)
    return np.stack(masks)


def fit_masks(masks_AHW: Masks, height: int, width: int) -> NDArray[np.uint8]:
    """Return the masks resized and cropped as `fit_portrait` does, 0 or 255."""
    from PIL import Image as PILImage

    pictures = (
        PILImage.fromarray(mask.astype(np.uint8) * 255).convert("RGB") for mask in masks_AHW
    )
    fitted = np.stack([fit_portrait(picture, height, width)[..., 0] for picture in pictures])
    return np.where(fitted > 127, np.uint8(255), np.uint8(0))


def is_place(region: str) -> bool:
    """Return whether a text is a box or a face, and not the name of a file."""
    return _is_face(region) or _BOX.fullmatch(region) is not None


def _is_face(region: Region) -> bool:
    return isinstance(region, str) and _FACE.fullmatch(region) is not None


def _name(region: Region) -> str:
    if isinstance(region, np.ndarray):
        return "the mask"
    return ",".join(map(str, region)) if isinstance(region, tuple) else str(region)


def _read_region(region: Region, portrait: Image) -> NDArray[np.bool_]:
    if isinstance(region, str) and (found := _BOX.fullmatch(region.replace(" ", ""))):
        return _box_mask(tuple(map(int, found.groups())), portrait)
    if isinstance(region, tuple):
        return _box_mask(region, portrait)
    return _mask_of_picture(region, portrait)


def _box_mask(box: tuple[int, ...], portrait: Image) -> NDArray[np.bool_]:
    if len(box) != 4:
        raise UsageError(f"region: expected a box as x,y,width,height, got {box}")
    left, top, width, height = box
    name = ",".join(map(str, box))
    if width < 1 or height < 1:
        raise InputError(f"{name}: this region is empty; give x,y,width,height in pixels")
    right, bottom = left + width, top + height
    if left < 0 or top < 0 or right > portrait.width or bottom > portrait.height:
        raise InputError(
            f"{name}: this region lies outside of the picture, which has {portrait.width}x"
            f"{portrait.height} pixels; give x,y,width,height within it"
        )
    mask_HW = np.zeros((portrait.height, portrait.width), np.bool_)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def _mask_of_picture(region: Any, portrait: Image) -> NDArray[np.bool_]:
    """Return a mask in the portrait's size: what is brighter than half of its brightest, or opaque."""
    image, name = picture_of(region)
    aspect = image.width * portrait.height / (image.height * portrait.width)
    if abs(aspect - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"{name}: this mask has {image.width}x{image.height} pixels and the portrait {portrait.width}x"
            f"{portrait.height}, which is another shape; draw it on the portrait itself"
        )
    layer = image.convert("L")
    if image.has_transparency_data:
        opaque = image.convert("RGBA").getchannel("A")
        layer = opaque if opaque.getextrema() != (255, 255) else layer
    values = np.asarray(layer.resize(portrait.size, resample=0))
    drawn: NDArray[np.bool_] = values > int(values.max()) / 2
    return drawn


def _face_boxes(names: Sequence[str], portrait: Image) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of faces by name; one ends where its neighbour begins."""
    if not names:
        return {}
    if not can_find_faces():
        raise InputError(
            f"{names[0]}: the package that finds faces is missing; pip install lipcast[lab], or give boxes"
        )
    faces = sorted(find_faces(portrait), key=lambda face: face.left)
    wanted = max(int(name.removeprefix("face")) for name in names)
    if len(faces) < wanted:
        raise InputError(
            f"face{wanted}: {len(faces)} faces were found in the portrait, and {wanted} are wanted; "
            "give boxes x,y,width,height or masks"
        )
    return {name: _face_mask(faces, int(name.removeprefix("face")) - 1, portrait) for name in names}


def _face_mask(faces: Sequence[FaceBox], index: int, portrait: Image) -> NDArray[np.bool_]:
    """Return a face with a margin, as far as it is nearer than any other."""
    face = faces[index]
    margin = _MARGIN * face.side
    y_H1, x_1W = np.ogrid[: portrait.height, : portrait.width]
    inside = (x_1W >= face.left - margin) & (x_1W < face.left + face.side + margin)
    inside = inside & (y_H1 >= face.top - margin) & (y_H1 < face.top + face.side + margin)
    distances = [np.hypot(x_1W - other.centre[0], y_H1 - other.centre[1]) for other in faces]
    nearest: NDArray[np.bool_] = inside & (np.argmin(distances, axis=0) == index)
    return nearest


def _check_apart(masks: Sequence[NDArray[np.bool_]], names: Sequence[str]) -> None:
    for second in range(len(masks)):
        for first in range(second):
            if (masks[first] & masks[second]).any():
                raise InputError(
                    f"{names[first]} and {names[second]}: these regions overlap; give each character its own "
                    "part of the picture"
                )
