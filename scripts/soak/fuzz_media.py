"""Damaged pictures, sounds and videos, many thousands: each gives a result or an error that Lipcast explains.

    .venv/bin/python scripts/soak/fuzz_media.py [--inputs 20000] [--seed 0]

Seeds are whole files of every kind that is read; each input is one of them with bytes changed, cut out,
doubled, put in from another file or set to the numbers that break parsers. Prints how many inputs each reader
got and what came of them. Exit code 1 where an exception came that is not of Lipcast's own tree.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipcast.errors import LipcastError
from lipcast.media.audio import open_audio
from lipcast.media.concat import look_at
from lipcast.media.image import load_portrait
from lipcast.media.mp4 import keep_complete, num_pictures
from lipcast.media.sound_parts import sample_codes, sound_parts
from lipcast.media.video import VideoWriter, iter_frames, timing

RATE = 8000
NUMBERS = [
    0,
    1,
    2,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
]
MAX_SHOWN = 5


def pictures() -> list[bytes]:
    """Small pictures of many kinds, with profile, EXIF, transparency and animation."""
    smooth = np.linspace(0, 255, 24 * 24 * 3).reshape(24, 24, 3).astype(np.uint8)
    image = Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = {"icc_profile": _srgb(), "exif": exif}
    found = [_encoded(image, kind, **profile) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    found += [
        _encoded(image, kind) for kind in ("BMP", "GIF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
    ]
    for mode in ("L", "LA", "RGBA", "P", "1", "I;16"):
        found.append(_encoded(image.convert("L" if mode == "I;16" else mode).convert(mode), "PNG"))
    found.append(_encoded(image.convert("CMYK"), "JPEG"))
    found.append(_encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]))
    found.append(_encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)]))
    return found


def _srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def sounds(folder: Path) -> list[bytes]:
    """A tenth of a second in every container and codec that is at hand."""
    kinds = {
        "a.wav": ("pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_alaw", "adpcm_ms"), "a.aiff": ("pcm_s16be",),
        "a.flac": ("flac",), "a.ogg": ("libopus",), "a.mp3": ("libmp3lame",), "a.m4a": ("aac", "alac"),
        "a.mov": ("pcm_s16le",), "a.mkv": ("aac",), "a.caf": ("pcm_s16le",), "a.au": ("pcm_s16be",),
    }  # fmt: skip
    found = []
    for name, codecs in kinds.items():
        for codec in codecs:
            rate = 48_000 if codec in {"libopus", "libmp3lame", "aac"} else RATE
            _encode(folder / name, codec, rate)
            found.append((folder / name).read_bytes())
    return [
        *found,
        found[0] * 2,
        found[0][:4] + b"\xff" * 4 + found[0][8:40] + b"\xff" * 4 + found[0][44:],
    ]


def _encode(path: Path, codec: str, rate: int) -> None:
    samples = 0.3 * np.sin(np.arange(rate // 10) / 9)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(
            samples[None].astype(np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def videos(folder: Path) -> list[bytes]:
    """A few frames as MP4 and Matroska."""
    found = []
    for suffix in (".mp4", ".mkv"):
        path = folder / f"v{suffix}"
        with VideoWriter(path, width=32, height=32, sample_rate=RATE, num_channels=1) as writer:
            writer.write(
                np.zeros((6, 32, 32, 3), np.uint8), np.zeros((6 * RATE // 25, 1), np.float32)
            )
        found.append(path.read_bytes())
    return found


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four changes at places that lie, half of the time, in the header."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        most = min(len(changed), 200) if rng.random() < 0.5 else len(changed)
        at = rng.randrange(max(1, most))
        count = rng.choice([1, 2, 4, 8, 64, 500])
        how = rng.randrange(6)
        if how == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            number = rng.choice(NUMBERS).to_bytes(4, rng.choice(["little", "big"]))
            changed[at : at + 4] = number
        elif how == 2:
            del changed[at : at + count]
        elif how == 3:
            changed[at:at] = changed[at : at + count]
        elif how == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[at:at] = other[start : start + count]
        else:
            del changed[at:]
    return bytes(changed)


def hear(path: Path) -> None:
    """Scan a sound by path and by content, and read it."""
    content = path.read_bytes()
    sound_parts(content)
    sample_codes(path)
    source = open_audio(path)
    while source.read() is not None:
        pass


def watch(path: Path) -> None:
    """Count, time and decode a video, and mend its end."""
    num_pictures(path)
    try:
        look_at(path)
        timing(path)
        for _ in iter_frames(path):
            pass
    finally:
        keep_complete(path)


def fuzz(
    name: str,
    read: Callable[[Path], Any],
    seeds: list[bytes],
    path: Path,
    count: int,
    rng: random.Random,
) -> Counter[str]:
    """Read damaged files; returns what came of them."""
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        content = damaged(rng.choice(seeds), seeds, rng)
        path.write_bytes(content)
        try:
            read(path)
            outcomes["read"] += 1
        except LipcastError as error:
            outcomes["explained"] += 1
            if "\n" in str(error):
                outcomes["FAILED"] += 1
                sys.stderr.write(f"{name}: more than one line: {error}\n")
        except Exception:
            outcomes["FAILED"] += 1
            if outcomes["FAILED"] <= MAX_SHOWN:
                kept = (
                    Path(tempfile.gettempdir()) / f"fuzz-{name}-{outcomes['FAILED']}{path.suffix}"
                )
                kept.write_bytes(content)
                sys.stderr.write(f"{kept}\n{traceback.format_exc()}\n")
    return outcomes


def readers(folder: Path) -> dict[str, tuple[Callable[[Path], Any], list[bytes], str, float]]:
    """Each reader with its seeds, the name of its files and its share of the inputs."""
    return {
        "pictures": (load_portrait, pictures(), "x.png", 0.45),
        "sounds": (hear, sounds(folder), "x.wav", 0.45),
        "videos": (watch, videos(folder), "x.mp4", 0.10),
    }


def targets() -> dict[str, Callable[[], None]]:
    """Return a test of each reader, as fuzz_parsers.py runs them."""
    av.logging.set_level(None)
    folder = tempfile.TemporaryDirectory(prefix="lipcast-fuzz-")  # removed with the tests

    def test(read: Callable[[Path], Any], seeds: list[bytes], file: str) -> Callable[[], None]:
        @given(st.integers(0, 2**63))
        def damaged_file(number: int) -> None:
            path, rng = Path(folder.name) / file, random.Random(number)
            path.write_bytes(damaged(rng.choice(seeds), seeds, rng))
            read(path)

        return damaged_file

    found = readers(Path(folder.name)).items()
    return {f"media: {kind}": test(read, seeds, file) for kind, (read, seeds, file, _) in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    logging.getLogger("lipcast").setLevel(logging.CRITICAL)
    av.logging.set_level(None)
    rng, began_s, failed = random.Random(flags.seed), time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, (read, seeds, file, share) in readers(folder).items():
            outcomes = fuzz(kind, read, seeds, folder / file, round(share * flags.inputs), rng)
            failed += outcomes["FAILED"]
            print(f"{kind}: {outcomes.total()} inputs, {dict(outcomes)}", flush=True)
    print(f"{flags.inputs} inputs in {time.perf_counter() - began_s:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
