"""A picture file opened: its first picture, upright, in sRGB, whatever kind of file it is.

Input: a path or the bytes of a file. Output: a Pillow picture and what to call it. What is done about a
picture that is not plain is said in a log record: an animation, a profile that cannot be used.
Every way in which a file can be unusable raises InputError with one sentence, which names what the file is.
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.env import logger
from lipcast.errors import InputError
from lipcast.media.colour import in_srgb
from lipcast.media.content import HEAD_BYTES, HEIC, NOT_A_FILE, is_address, kind_of, shortened

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logger("media.picture_file")
MIN_SIDE = 16
MAX_PIXELS = 178_956_970
"""Pillow's own border of a decompression bomb: twice 2^30 / 4 / 3 pixels."""
MAX_ASPECT = 16
EXPECTED = "expected a picture (png, jpeg, webp, avif, bmp, tiff or gif)"
_ADVICE = "save it again as png or jpeg"
_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED_CHUNKS = frozenset(
    (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT")
)
"""PNG chunks that change the picture, beside those whose names begin with a capital."""
_MOST_PROFILE_BYTES = 1 << 24


def open_picture(
    source: str | os.PathLike[str] | bytes | bytearray,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
) -> tuple[Image, str]:
    """Decode a file; returns the picture and what to call it in a message.

    `max_pixels` bounds what is decoded; `formats`: Pillow's names of those that may be read.
    """
    content, name = _read_source(source)
    content, profile = _without_notes(content) if content.startswith(_PNG) else (content, b"")
    image = _decoded(content, name, max_pixels, formats)
    if profile:
        image.info["icc_profile"] = profile
    return _prepared(image, content, name), name


def prepared(image: Image, name: str) -> Image:
    """Return a picture that is already open upright and in sRGB."""
    return _prepared(image, b"", name)


def _prepared(image: Image, content: bytes, name: str) -> Image:
    coloured, note = in_srgb(image, content)
    if note:
        _LOG.warning("%s: %s", name, note)
    if (count := _num_pictures(content)) > 1:
        _LOG.warning("%s: has %d pictures; the first one is used", name, count)
    return _upright(image, coloured, name)


def _num_pictures(content: bytes) -> int:
    """Return how many pictures an animation or a document has; 1 for other files and for broken ones."""
    from PIL import Image as PILImage

    try:
        with PILImage.open(io.BytesIO(content)) as image:
            # A phone's MPO holds a photo and its depth.
            return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # the first one has been read already
        return 1


def _upright(image: Image, coloured: Image, name: str) -> Image:
    """Turn `coloured` as the EXIF tag of `image` says."""
    from PIL import ImageOps

    try:
        if coloured is image:
            return ImageOps.exif_transpose(image)
        turned = coloured.copy()
        turned.getexif()[0x0112] = image.getexif().get(0x0112, 1)
        return ImageOps.exif_transpose(turned)
    except Exception as error:  # a malformed EXIF block must not cost the picture
        _LOG.warning("%s: its EXIF data are broken (%s); it is used as it lies", name, error)
        return coloured


def check_size(width: int, height: int, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise InputError for a picture that is too small, too large or too long."""
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
    if width * height > max_pixels:
        raise _too_large(name, max_pixels)


def _too_large(name: str, max_pixels: int) -> InputError:
    return InputError(
        f"expected a picture of at most {max_pixels // 10**6} megapixels, got {name}, which "
        "claims to be larger; make it smaller"
    )


def _decoded(content: bytes, name: str, max_pixels: int, formats: Sequence[str] | None) -> Image:
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    kind = kind_of(content[:HEAD_BYTES])
    try:
        with warnings.catch_warnings():
            # Large photos are fine up to MAX_PIXELS, where Pillow raises by itself.
            warnings.simplefilter("ignore")
            if kind == HEIC and formats is None:
                image = _opened_heic(content, name)
            else:
                image = PILImage.open(
                    io.BytesIO(content), formats=None if formats is None else tuple(formats)
                )
            check_size(image.width, image.height, name, max_pixels=max_pixels)
            image.load()
    except PILImage.DecompressionBombError as error:
        raise _too_large(name, max_pixels) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{EXPECTED}, got {name}, {_what_it_is(kind)}") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise at least seven types on broken files
        if "truncated" in str(error):
            raise InputError(
                f"{EXPECTED}, got {name}, which is cut short; download or copy it again"
            ) from error
        raise InputError(f"{EXPECTED}, got {name}, which is broken ({error}); {_ADVICE}") from error
    return image


def _what_it_is(kind: str) -> str:
    """Return the second half of a sentence about a file that Pillow does not know."""
    if not kind:
        return f"which is not one; {_ADVICE}"
    if "picture" in kind:
        return f"which begins as {kind} and is broken, or of a rare kind; {_ADVICE}"
    if "video" in kind:
        return f"which is not one: it looks like {kind}; take a picture of it and give that"
    return f"which is not one: it looks like {kind}; {_ADVICE}"


def _opened_heic(content: bytes, name: str) -> Image:
    """Open a HEIC picture. Raises InputError where the package for it is missing."""
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(
            f"{name} is {HEIC}, the format of phones, and the package that reads it is missing; "
            "pip install lipcast[heif], or save it as jpeg or png"
        ) from error
    opened: Any = pillow_heif.open_heif(io.BytesIO(content))
    width, height = opened.size
    check_size(width, height, name)
    image: Image = opened.to_pillow()
    image.info.pop("exif", None)  # the decoder has turned it upright
    return image


def _read_source(source: str | os.PathLike[str] | bytes | bytearray) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray):
        content, name = bytes(source), f"{len(source)} bytes"
    else:
        content, name = _read_file(source), os.fspath(source)
    if not content:
        raise InputError(f"{EXPECTED}, got {name}: it is empty; {_ADVICE}")
    return content, name


def _read_file(source: str | os.PathLike[str]) -> bytes:
    path = Path(source)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        text = os.fspath(source)
        what = NOT_A_FILE if is_address(text) else "which does not exist; check the path"
        raise InputError(f"{EXPECTED}, got {shortened(text)}, {what}") from error
    except IsADirectoryError as error:
        raise InputError(f"{EXPECTED}, got {path}, a folder; name a file in it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{EXPECTED}, got {path}, which cannot be read ({error})") from error


def _without_notes(content: bytes) -> tuple[bytes, bytes]:
    """Return a PNG without the chunks that do not change the picture, and its colour profile.

    Pillow refuses the whole picture where a note or the profile is long, or where their checksum is wrong.
    """
    kept, profile, position = [_PNG], b"", len(_PNG)
    while position + 8 <= len(content):
        length, name = (
            int.from_bytes(content[position : position + 4], "big"),
            content[position + 4 : position + 8],
        )
        end = position + 12 + length
        if name == b"iCCP":
            profile = _inflated(content[position + 8 : end - 4])
        elif name[:1].isupper() or name in _NEEDED_CHUNKS:
            kept.append(content[position:end])
        position = end
    return b"".join(kept), profile


def _inflated(chunk: bytes) -> bytes:
    """Return the profile in an iCCP chunk; empty where it is broken or absurdly long."""
    _, _, packed = chunk.partition(b"\0")
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(packed[1:], _MOST_PROFILE_BYTES)
        return b"" if unpacker.unconsumed_tail else profile
    except zlib.error:
        return b"broken"  # said where it is to be used
