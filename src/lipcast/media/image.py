"""Portraits: read any picture, fit it to the size of the video; and contact sheets.

Input: a path, the bytes of a file, a PIL image or an array. Output: an RGB picture.
Colours become sRGB by the file's profile; turned upright by its EXIF tag; the first frame of an animation;
transparent parts on white (a cut-out's soft edge is drawn for paper); 16-bit and float grey are scaled.
Every way in which a picture can be unusable raises InputError with one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.generate_options import Crop
from lipcast.errors import InputError, OutputError
from lipcast.media.face_crop import crop_to_face
from lipcast.media.picture_file import MAX_PIXELS, check_size, open_picture, prepared

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = str | os.PathLike[str] | bytes | NDArray[Any] | Any
"""A path, the content of an image file, an array, or a `PIL.Image.Image`."""


def load_portrait(
    source: ImageSource,
    *,
    crop: Crop = "center",
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
) -> Image:
    """Return the picture as upright 8-bit sRGB.

    `max_pixels` bounds what is decoded of a file; `formats`: Pillow's names of those that may be read.

    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, uint16, bool, or float in 0..1.
    Raises InputError: not there, empty, truncated, not a picture, below 16 pixels, above
    179 megapixels, or longer than 16 times its width.
    """
    image, name = picture_of(source, max_pixels=max_pixels, formats=formats)
    check_size(image.width, image.height, name)
    portrait = _to_rgb(image)
    return crop_to_face(portrait, name) if crop == "face" else portrait


def picture_of(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> tuple[Image, str]:
    """Return a picture as Pillow has it, upright, and what to call it; arguments as of `load_portrait`."""
    if isinstance(source, np.ndarray):
        return _image_of_array(source), "the array"
    if isinstance(source, bytes | bytearray | str | os.PathLike):
        return open_picture(source, max_pixels=max_pixels, formats=formats)
    return prepared(source, "the picture"), "the picture"


def fit_portrait(image: Image, height: int, width: int) -> NDArray[np.uint8]:
    """Resize and crop the picture to [height, width, 3] uint8.

    The short side becomes min(height, width) (Pillow's antialiased bilinear filter), the long
    side int(short * long / short_in); then a centre crop; black where the picture is too small.
    """
    from PIL import Image as PILImage

    short = min(height, width)
    if image.width <= image.height:
        size = short, int(short * image.height / image.width)
    else:
        size = int(short * image.width / image.height), short
    resized = image.resize(size, PILImage.Resampling.BILINEAR)
    left, top = _crop_offset(size[0], width), _crop_offset(size[1], height)
    # Pillow's crop fills what lies outside of the picture with black.
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def contact_sheet(frames: Sequence[NDArray[np.uint8]], columns: int, path: str | Path) -> None:
    """Write frames ([H, W, 3] uint8, all of one size) side by side into one PNG."""
    from PIL import Image as PILImage

    assert columns > 0 and len(frames) > 0
    height, width = frames[0].shape[:2]
    rows = -(-len(frames) // columns)
    sheet = PILImage.new("RGB", (min(columns, len(frames)) * width, rows * height))
    for i, frame in enumerate(frames):
        sheet.paste(PILImage.fromarray(frame), (i % columns * width, i // columns * height))
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write the contact sheet ({error.strerror or error})"
        ) from error


def _crop_offset(size: int, wanted: int) -> int:
    """Return where the crop begins; negative: how much black comes first.

    Halves go to the even side when cropping and down when padding, as in torchvision.
    """
    if wanted > size:
        return -((wanted - size) // 2)
    return round((size - wanted) / 2)


def _image_of_array(array: NDArray[Any]) -> Image:
    from PIL import Image as PILImage

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f"expected a picture array [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}; "
            "put the channels last"
        )
    if array.size == 0:
        raise InputError(f"expected a picture array, got an empty one {list(array.shape)}")
    return PILImage.fromarray(np.ascontiguousarray(_bytes_of(array)))


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert samples of any supported type to uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"expected a picture array of uint8, uint16, bool or float, got {array.dtype}; "
            "convert it"
        )
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise InputError("expected a float picture with values in 0..1, got others; scale it")
    scaled: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return scaled


def _to_rgb(image: Image) -> Image:
    """Convert any Pillow mode to RGB."""
    from PIL import Image as PILImage

    if image.mode.startswith("I") or image.mode == "F":
        return PILImage.fromarray(_scaled_grey(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow turns premultiplied grey into nothing but plain grey with alpha.
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    paper = PILImage.new("RGBA", layer.size, "white")
    return PILImage.alpha_composite(paper, layer).convert("RGB")


def _scaled_grey(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits to 8: the range is 0..1, 0..255 or 0..65535, whichever holds it.

    16-bit files always span 0..65535.
    """
    values = np.nan_to_num(samples.astype(np.float64))
    full = next((top for top in (1.0, 255.0) if values.max() <= top), 65535.0)
    if samples.dtype.kind != "f":
        full = 65535.0
    return np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8)
