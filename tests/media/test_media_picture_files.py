"""Pictures as people have them: profiles, phone formats, notes, animations, and files that are none."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icc import (
    ADOBE,
    D50,
    D65,
    P3,
    PROPHOTO,
    SRGB,
    cmyk_profile,
    encoded_in,
    grey_profile,
    matrix_profile,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lipcast.errors import InputError
from lipcast.media.image import load_portrait
from sounds import EXAMPLES

SMOOTH = np.array(Image.open(EXAMPLES / "portrait_0.png").convert("RGB").resize((64, 64)))
SPACES = {"P3": (P3, 2.2, D65), "Adobe RGB": (ADOBE, 2.2, D65), "ProPhoto": (PROPHOTO, 1.8, D50)}


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def difference(content: bytes) -> float:
    """Mean difference to the original in levels."""
    return float(np.abs(pixels(load_portrait(content)) - SMOOTH).mean())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("space", SPACES)
def test_a_profile_is_applied(kind: str, space: str, caplog: pytest.LogCaptureFixture) -> None:
    primaries, gamma, white = SPACES[space]
    image = Image.fromarray(encoded_in(SMOOTH, primaries, gamma, white))
    profile = matrix_profile(primaries, gamma, white)
    how = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    plain = encoded(image, kind, **how)
    assert difference(plain) > 2
    assert difference(encoded(image, kind, icc_profile=profile, **how)) < 1.5
    assert not caplog.records


def test_transparency_and_palettes_keep_with_a_profile() -> None:
    image = Image.fromarray(encoded_in(SMOOTH, P3, 2.2))
    image.putalpha(Image.new("L", image.size, 255))
    profile = matrix_profile(P3, 2.2)
    assert difference(encoded(image, icc_profile=profile)) < 1.2
    image.putalpha(Image.new("L", image.size, 0))
    assert set(pixels(load_portrait(encoded(image, icc_profile=profile))).ravel()) == {255}
    palette = Image.fromarray(encoded_in(SMOOTH, P3, 2.2)).quantize(256)
    assert difference(encoded(palette, icc_profile=profile)) < 4


def test_grey_and_cmyk_profiles() -> None:
    grey = Image.fromarray(np.full((32, 32), 128, np.uint8))
    (level,) = set(pixels(load_portrait(encoded(grey, icc_profile=grey_profile(1.0)))).ravel())
    assert level == pytest.approx(188, abs=1)
    inked = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        content = encoded(inked, kind, icc_profile=cmyk_profile((60.0, 50.0, 30.0)))
        red, green, blue = pixels(load_portrait(content))[16, 16]
        assert red > 190
        assert max(green, blue) < 120
    assert pixels(load_portrait(encoded(inked, "JPEG")))[16, 16].tolist() == [0, 255, 255]


def test_a_picture_in_srgb_stays_as_it_is() -> None:
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encoded(Image.fromarray(noise), icc_profile=own)
    np.testing.assert_array_equal(pixels(load_portrait(content)), noise)


@pytest.mark.parametrize(
    ("profile", "mode"),
    [(b"no profile", "RGB"), (matrix_profile(P3, 2.2)[:200], "RGB"), (grey_profile(1.0), "RGB"),
     (cmyk_profile((60, 0, 0)), "RGB"), (bytes(3000), "L")],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_said(
    profile: bytes, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    found = pixels(load_portrait(encoded(image, icc_profile=profile)))
    np.testing.assert_array_equal(found, pixels(image.convert("RGB")))
    assert "its colours are taken for sRGB" in caplog.text


def with_chunk(content: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind the header."""
    packed = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content[:33] + packed + content[33:]


def chromaticities(space: tuple[float, ...], white: tuple[float, float]) -> bytes:
    return b"".join(struct.pack(">I", round(value * 100_000)) for value in (*white, *space))


@pytest.mark.parametrize("space", SPACES)
def test_colours_stated_in_numbers(space: str) -> None:
    primaries, gamma, white = SPACES[space]
    content = encoded(Image.fromarray(encoded_in(SMOOTH, primaries, gamma, white)))
    content = with_chunk(content, b"gAMA", struct.pack(">I", round(100_000 / gamma)))
    assert difference(with_chunk(content, b"cHRM", chromaticities(primaries, white))) < 1.2


def test_display_p3_by_code_points() -> None:
    values = SMOOTH / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    as_p3 = encoded_in(SMOOTH, P3, 1.0) / 255
    assert linear.shape == as_p3.shape
    curved = np.where(as_p3 <= 0.0031308, as_p3 * 12.92, 1.055 * as_p3 ** (1 / 2.4) - 0.055)
    content = encoded(Image.fromarray(np.rint(255 * curved).astype(np.uint8)))
    assert difference(content) > 1
    assert difference(with_chunk(content, b"cICP", bytes((12, 13, 0, 1)))) < 1.5


def test_adobe_rgb_as_cameras_say_it() -> None:
    image = Image.fromarray(encoded_in(SMOOTH, ADOBE, 2.2))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    content = encoded(image, "JPEG", quality=98, subsampling=0, exif=exif)
    assert difference(content) < 1.5


@pytest.mark.parametrize("numbers", [bytes(32), b"\xff" * 32, chromaticities(SRGB[:2] * 3, D65)])
def test_impossible_numbers_are_said(numbers: bytes, caplog: pytest.LogCaptureFixture) -> None:
    content = with_chunk(encoded(Image.fromarray(SMOOTH)), b"gAMA", struct.pack(">I", 100_000))
    assert load_portrait(with_chunk(content, b"cHRM", numbers)).mode == "RGB"
    assert "taken for sRGB" in caplog.text


def test_notes_of_any_length_cost_nothing() -> None:
    notes = PngInfo()
    notes.add_text("prompt", "x" * 3_000_000, zip=True)
    notes.add_itxt("workflow", "y" * 3_000_000, zip=True)
    image = Image.fromarray(encoded_in(SMOOTH, P3, 2.2))
    profile = matrix_profile(P3, 2.2) + bytes(2_000_000)
    content = encoded(image, pnginfo=notes, icc_profile=profile)
    assert len(content) < 100_000
    assert difference(content) < 1.2
    damaged = with_chunk(content, b"tEXt", b"a\0b").replace(b"a\0b", b"a\0c")
    assert difference(damaged) < 1.2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_pictures_is_used(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = pixels(load_portrait(content))[16, 16]
    assert red > 240
    assert max(green, blue) < 10
    assert "has 3 pictures; the first one is used" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_with_a_profile_is_upright(orientation: int) -> None:
    upright = SMOOTH[:, :48]

    stored = Image.fromarray(encoded_in(upright, P3, 2.2))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}

    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, "PNG", exif=exif, icc_profile=matrix_profile(P3, 2.2))
    assert np.abs(pixels(load_portrait(content)) - upright).mean() < 1.2


def heic() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    try:
        pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(buffer, quality=95)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"no HEVC encoder: {error}")
    return buffer.getvalue()


def test_a_phones_picture_is_read_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(heic())
    assert np.abs(pixels(load_portrait(path)) - SMOOTH).mean() < 4


def test_a_phones_picture_is_named_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"photo.jpg is a HEIC picture.*lipcast\[heif\].*jpeg"):
        load_portrait(path)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_a_broken_phones_picture_gets_a_sentence(brand: bytes) -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(InputError):
        load_portrait(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page (HTML)"),
        (b"\n <html lang=en>", "a web page (HTML)"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<svg width="5"/>', "an SVG drawing"),
        (b'{"error": "quota exceeded"}', "a JSON document"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(50), "an MP4 video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(50), "a QuickTime video"),
        (b"\x1aE\xdf\xa3" + bytes(50), "a Matroska"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(50), "a WAV sound"),
        (b"PK\x03\x04" + bytes(50), "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\xff\x0a" + bytes(50), "a JPEG XL picture"),
        (b"8BPS\0\1" + bytes(50), "a Photoshop file"),
        (bytes(500), "nothing but zeros"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "me.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_portrait(path)
    assert kind in str(caught.value)
    assert "me.png" in str(caught.value)


def test_a_broken_second_picture_costs_nothing() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    at = content.rindex(b"\x2c\0\0\0\0")
    assert pixels(load_portrait(content[: at + 8]))[16, 16].tolist() == [255, 0, 0]
