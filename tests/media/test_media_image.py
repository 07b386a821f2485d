"""Portraits: every mode and every way to be broken; the crop; contact sheets."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lipcast.errors import InputError, OutputError
from lipcast.media.image import contact_sheet, fit_portrait, load_portrait
from profiles import examples

ORIENTATION_TAG = 0x0112


def quadrants(height: int = 32, width: int = 48) -> np.ndarray:
    """Four colours, so that a turn or a mirroring shows."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (250, 10, 10)
    picture[: height // 2, width // 2 :] = (10, 250, 10)
    picture[height // 2 :, : width // 2] = (10, 10, 250)
    picture[height // 2 :, width // 2 :] = (240, 240, 20)
    return picture


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


STORED_AS = {  # how a camera stores a picture that shall look like `quadrants`
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: np.swapaxes(p, 0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.swapaxes(p[::-1, ::-1], 0, 1),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_is_honoured(orientation: int) -> None:
    stored = np.ascontiguousarray(STORED_AS[orientation](quadrants()))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    content = encoded(Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(pixels(load_portrait(content)), quadrants())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_files_keep_every_pixel(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "portrait"
    options = {"lossless": True} if kind == "WEBP" else {}
    path.write_bytes(encoded(Image.fromarray(quadrants()), kind, **options))
    np.testing.assert_array_equal(pixels(load_portrait(path)), quadrants())
    np.testing.assert_array_equal(pixels(load_portrait(str(path))), quadrants())


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_files_are_close(kind: str) -> None:
    smooth = np.asarray(Image.fromarray(quadrants()).resize((96, 64), Image.Resampling.BICUBIC))
    image = load_portrait(encoded(Image.fromarray(smooth), kind, quality=95))
    assert np.abs(pixels(image).astype(int) - smooth).mean() < 6


def test_pillow_pictures_and_arrays_are_taken_as_they_are() -> None:
    for source in (Image.fromarray(quadrants()), quadrants()):
        np.testing.assert_array_equal(pixels(load_portrait(source)), quadrants())


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    black_and_white = Image.fromarray(np.where(quadrants() > 200, 255, 0).astype(np.uint8))
    image = pixels(load_portrait(black_and_white.convert(mode)))
    assert image.shape == (32, 48, 3)
    expected = pixels(black_and_white.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    layer = np.zeros((32, 48, 4), np.uint8)
    layer[:, 24:, 3] = 255
    half_and_half = Image.fromarray(layer)
    through = "LA" if mode.upper() == "LA" else "RGBA"
    image = pixels(load_portrait(half_and_half.convert(through).convert(mode)))
    assert (image[:, :24] == 255).all()
    assert (image[:, 24:] == 0).all()


def test_a_transparent_palette_colour_becomes_white() -> None:
    palette = Image.fromarray(quadrants()).quantize(4)
    transparent = palette.getpixel((0, 0))
    image = pixels(load_portrait(encoded(palette, transparency=transparent)))
    assert (image[:16, :24] == 255).all()
    assert (image[16:, :24] != 255).all()


def test_half_transparent_is_half_white() -> None:
    layer = np.full((16, 16, 4), (0, 0, 0, 128), np.uint8)
    assert set(pixels(load_portrait(layer)).ravel()) == {127}


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.full((16, 16), 32768, np.uint16), 128),
        (np.full((16, 16), 200, np.uint16), 1),
        (np.full((16, 16), 0.5, np.float32), 128),
        (np.full((16, 16, 3), 0.25, np.float64), 64),
        (np.ones((16, 16, 1), np.bool_), 255),
        (np.full((16, 16, 3), 65535, np.uint16), 255),
    ],
)
def test_deep_arrays_are_scaled(samples: np.ndarray, expected: int) -> None:
    assert set(pixels(load_portrait(samples)).ravel()) == {expected}


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(16, axis=0)
    image = pixels(load_portrait(encoded(Image.fromarray(ramp))))
    np.testing.assert_array_equal(image[0, :, 0], np.arange(256))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_tiff_is_scaled_by_its_range(top: float) -> None:
    ramp = np.linspace(0, top, 256, dtype=np.float32)[None].repeat(16, axis=0)
    image = pixels(load_portrait(encoded(Image.fromarray(ramp), "TIFF")))
    np.testing.assert_array_equal(image[0, :, 1], np.arange(256))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(load_portrait(content))[10, 10].tolist() == [255, 0, 0]


def bomb() -> bytes:
    """A PNG that claims 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def noise_png() -> bytes:
    samples = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(samples))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/picture.png", ["/no/such/picture.png", "does not exist", "check the path"]),
        (Path(__file__).parent, ["a folder"]),
        ("nul\0byte", ["cannot be read"]),
        (b"", ["is empty"]),
        (b"hello, I am text" * 100, ["looks like a text file", "save it again"]),
        (noise_png()[:-3000], ["cut short"]),
        (encoded(Image.fromarray(quadrants(256, 256)), "JPEG")[:1200], ["cut short"]),
        (bomb(), ["megapixels", "smaller"]),
        (np.zeros((15, 200, 3), np.uint8), ["at least 16x16", "200x15"]),
        (np.zeros((20, 400, 3), np.uint8), ["16 times", "400x20"]),
        (np.zeros((3, 32, 32), np.uint8), ["[3, 32, 32]", "channels last"]),
        (np.zeros((32,), np.uint8), ["[32]"]),
        (np.zeros((0, 32, 3), np.uint8), ["empty"]),
        (np.zeros((32, 32), np.int64), ["int64"]),
        (np.full((32, 32), np.nan), ["0..1"]),
        (np.full((32, 32), 7.0), ["0..1"]),
    ],
)
def test_unusable_pictures_say_why(source: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_portrait(source)
    message = str(caught.value)
    assert message.startswith("expected a")
    assert "\n" not in message
    for word in words:
        assert word in message


JPEG = encoded(Image.fromarray(quadrants()), "JPEG")
GIF = encoded(Image.fromarray(quadrants()), "GIF")


@settings(max_examples=examples(150), deadline=None)
@given(
    content=st.sampled_from([noise_png(), JPEG, GIF]),
    place=st.floats(0, 1),
    damage=st.binary(min_size=0, max_size=12),
    cut=st.booleans(),
)
def test_damaged_files_give_a_picture_or_an_input_error(
    content: bytes, place: float, damage: bytes, cut: bool
) -> None:
    at = int(place * len(content))
    damaged = content[:at] + damage + (b"" if cut else content[at + len(damage) :])
    try:
        image = load_portrait(damaged)
    except InputError:
        return
    assert image.mode == "RGB"


@settings(max_examples=examples(60), deadline=None)
@given(
    picture=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    target=st.tuples(st.sampled_from([64, 128, 192]), st.sampled_from([64, 128, 192])),
)
def test_the_fit_has_its_size_and_black_only_outside(
    picture: tuple[int, int], target: tuple[int, int]
) -> None:
    fitted = fit_portrait(Image.new("RGB", picture[::-1], "white"), *target)
    assert fitted.shape == (*target, 3)
    assert fitted.dtype == np.uint8
    white = fitted[:, :, 0] == 255
    assert ((fitted == 255) | (fitted == 0)).all()
    # The picture lies in the middle, up to one pixel.
    for axis in (0, 1):
        line = white.any(axis=1 - axis)
        before, after = int(line.argmax()), int(line[::-1].argmax())
        assert 0 <= after - before <= 1


def test_a_picture_of_the_wanted_size_is_untouched() -> None:
    np.testing.assert_array_equal(
        fit_portrait(Image.fromarray(quadrants(64, 64)), 64, 64), quadrants(64, 64)
    )


def test_a_contact_sheet_holds_the_frames_in_order(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 6, 3), 10 * i, np.uint8) for i in range(5)])
    contact_sheet(list(frames), 2, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (24, 12, 3)
    tiles = sheet[::8, ::6, 0]
    assert tiles.tolist() == [[0, 10], [20, 30], [40, 0]]


def test_a_contact_sheet_without_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no/sheet\.png"):
        contact_sheet([np.zeros((8, 8, 3), np.uint8)], 1, tmp_path / "no" / "sheet.png")
