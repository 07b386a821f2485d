"""Portraits: read any picture, fit it to the size of the video; and contact sheets.

Input: a path, the bytes of a file, a PIL image or an array. Output: an RGB picture.
Turned upright by its EXIF tag; the first frame of an animation; transparent parts on white
(a cut-out's soft edge is drawn for paper); 16-bit and float grey are scaled, not clipped.
Every way in which a picture can be unusable raises InputError with one sentence.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipcast.errors import InputError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = str | os.PathLike[str] | bytes | NDArray[Any] | Any
"""A path, the content of an image file, an array, or a `PIL.Image.Image`."""

MIN_SIDE = 16
MAX_PIXELS = 178_956_970
"""Pillow's own border of a decompression bomb: twice 2^30 / 4 / 3 pixels."""
MAX_ASPECT = 16
_EXPECTED = "expected a picture (png, jpeg, webp, avif, bmp, tiff or gif)"
_ADVICE = "save it again as png or jpeg"


def load_portrait(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> Image:
    """The picture as upright 8-bit RGB.

    `max_pixels` bounds what is decoded of a file; `formats`: Pillow's names of those that may be read.

    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, uint16, bool, or float in 0..1.
    Raises InputError: not there, empty, truncated, not a picture, below 16 pixels, above
    179 megapixels, or longer than 16 times its width.
    """
    from PIL import ImageOps

    if isinstance(source, np.ndarray):
        image, name = _image_of_array(source), "the array"
    elif isinstance(source, bytes | bytearray | str | os.PathLike):
        image, name = _open_image(source, max_pixels, formats)
    else:
        image, name = source, "the picture"
    _check_size(image.width, image.height, name)
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # a malformed EXIF block must not cost the picture
        raise InputError(
            f"{_EXPECTED}, got {name}, whose EXIF data are broken ({error})"
        ) from error
    return _to_rgb(upright)


def fit_portrait(image: Image, height: int, width: int) -> NDArray[np.uint8]:
    """The picture resized and cropped to [height, width, 3] uint8.

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
    """Where the crop begins; negative: how much black comes first.

    Halves go to the even side when cropping and down when padding, as in torchvision.
    """
    if wanted > size:
        return -((wanted - size) // 2)
    return round((size - wanted) / 2)


def _open_image(
    source: str | os.PathLike[str] | bytes | bytearray,
    max_pixels: int,
    formats: Sequence[str] | None,
) -> tuple[Image, str]:
    """Decode a file's content; returns the picture and what to call it in a message."""
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    content, name = _read_source(source)
    try:
        with warnings.catch_warnings():
            # Large photos are fine up to MAX_PIXELS, where Pillow raises by itself.
            warnings.simplefilter("ignore")
            image = PILImage.open(
                io.BytesIO(content), formats=None if formats is None else tuple(formats)
            )
            _check_size(image.width, image.height, name)
            if image.width * image.height > max_pixels:
                raise PILImage.DecompressionBombError(f"{image.width}x{image.height}")
            image.load()
    except PILImage.DecompressionBombError as error:
        raise InputError(
            f"expected a picture of at most {max_pixels // 10**6} megapixels, got {name}, which "
            "claims to be larger; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{_EXPECTED}, got {name}, which is not one; {_ADVICE}") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise at least seven types on broken files
        raise InputError(
            f"{_EXPECTED}, got {name}, which is broken ({error}); {_ADVICE}"
        ) from error
    return image, name


def _read_source(source: str | os.PathLike[str] | bytes | bytearray) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray):
        content, name = bytes(source), f"{len(source)} bytes"
    else:
        path = Path(source)
        content, name = _read_file(path), str(path)
    if not content:
        raise InputError(f"{_EXPECTED}, got {name}: it is empty; {_ADVICE}")
    return content, name


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{_EXPECTED}, got {path}, which does not exist; check the path"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{_EXPECTED}, got {path}, a folder; name a file in it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{_EXPECTED}, got {path}, which cannot be read ({error})") from error


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"expected a picture of at least {MIN_SIDE}x{MIN_SIDE} pixels, got {name} with "
            f"{width}x{height}; use a larger one"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"expected a picture at most {MAX_ASPECT} times as long as wide, got {name} with "
            f"{width}x{height}; crop it"
        )


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
    """Samples of any supported type as uint8."""
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
    """Any Pillow mode as RGB."""
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
    """Grey of more than 8 bits as 8: the range is 0..1, 0..255 or 0..65535, whichever holds it.

    16-bit files always span 0..65535.
    """
    values = np.nan_to_num(samples.astype(np.float64))
    full = next((top for top in (1.0, 255.0) if values.max() <= top), 65535.0)
    if samples.dtype.kind != "f":
        full = 65535.0
    return np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8)
