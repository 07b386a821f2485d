"""WAV files as people have them: pieces in one file, placeholder lengths, odd chunks, kinds of samples."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from media_helpers import EncodeSound, joined, tone

from lipcast.errors import InputError
from lipcast.media.audio import open_audio
from sounds import syllables

RATE = 16_000
PCM, FLOAT, ALAW, ULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
SIGNAL = syllables(0.5).astype(np.float64)
SAMPLES = (SIGNAL * 32767).astype("<i2").tobytes()
COUNT = len(SIGNAL)


def chunk(name: bytes, content: bytes, *, length: int | None = None, pad: bool = True) -> bytes:
    stated = struct.pack("<I", len(content) if length is None else length)
    return name + stated + content + bytes(len(content) % 2 if pad else 0)


def format_of(tag: int = PCM, bits: int = 16, *, rate: int = RATE, more: bytes = b"") -> bytes:
    size = bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, 1, rate, rate * size, size, bits) + more)


def riff(*chunks: bytes, length: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


PLAIN = riff(format_of(), chunk(b"data", SAMPLES))
PLACEHOLDERS = [
    0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF - 36, 0x7FFF_FFFF - 44,
    2_000_000_000, 1_000_000_000, 100_000_000, 2_000_000_036, 1 << 30, 3_456_789_012, 1_234_567_890,
]  # fmt: skip


def streamed(length: int) -> bytes:
    return riff(
        format_of(), chunk(b"data", SAMPLES, length=length), length=(length + 36) % (1 << 32)
    )


def heard(content: bytes) -> np.ndarray:
    samples, _ = joined(open_audio(content))
    return samples[:, 0]


@pytest.mark.parametrize("length", PLACEHOLDERS)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_placeholder_is_an_unknown_length(
    length: int, pieces: int, caplog: pytest.LogCaptureFixture
) -> None:
    found = heard(streamed(length) * pieces)
    np.testing.assert_allclose(found, np.tile(SIGNAL, pieces), atol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize("pieces", [2, 5])
def test_files_one_behind_another_are_read_on(
    pieces: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cat.wav"
    path.write_bytes(PLAIN * pieces)
    assert open_audio(path).duration_s == 0.5 * pieces
    np.testing.assert_allclose(heard(PLAIN * pieces), np.tile(SIGNAL, pieces), atol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "rate", "codec"),
    [("a.m4a", 44_100, "aac"), ("a.aiff", 44_100, "pcm_s16be"), ("a.mov", 16_000, "pcm_s16le"),
     ("a.flac", 16_000, "flac"), ("a.opus", 48_000, "libopus"), ("a.mp3", 44_100, "libmp3lame")],
)  # fmt: skip
def test_other_files_one_behind_another_are_read_on(
    name: str, rate: int, codec: str, encode_sound: EncodeSound
) -> None:
    path = encode_sound(name, tone(1.0, rate), rate, codec)
    once = open_audio(path).duration_s
    path.write_bytes(path.read_bytes() * 2)
    assert open_audio(path).duration_s == pytest.approx(2 * once, abs=0.08)


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (riff(format_of(), chunk(b"data", SAMPLES, length=len(SAMPLES) // 2)), 0.25),
        (PLAIN + np.random.default_rng(0).bytes(2 * RATE), 1.0),
        (PLAIN + riff(format_of(rate=8000), chunk(b"data", SAMPLES)), 0.5),
    ],
)
def test_what_lies_behind_the_end_is_said(
    content: bytes, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    content = content.replace(SAMPLES, bytes(len(SAMPLES)))[: len(content)]
    content = content if seconds != 0.25 else content + bytes(2)
    open_audio(content)
    (record,) = (record for record in caplog.records if "behind the end" in record.message)
    assert (
        f"about {seconds:.1f} s" in record.message
        or f"about {seconds + 0.1:.1f} s" in record.message
    )


def test_a_file_that_is_cut_short_is_still_said(caplog: pytest.LogCaptureFixture) -> None:
    open_audio(streamed(10 * len(SAMPLES) + 2))
    assert "expected 5.00 s of sound, got 0.50 s" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        riff(chunk(b"data", SAMPLES), format_of()),
        riff(format_of(), chunk(b"junk", b"abc"), chunk(b"data", SAMPLES)),
        riff(format_of(), chunk(b"junk", b"abc", pad=False), chunk(b"data", SAMPLES)),
        riff(format_of(), chunk(b"data", SAMPLES), length=10),
        riff(format_of(), chunk(b"data", SAMPLES[:4000]), chunk(b"data", SAMPLES[4000:])),
        riff(format_of(), chunk(b"data", SAMPLES), chunk(b"LIST", b"INFOISFT\4\0\0\0abc\0")),
        PLAIN + b"TAG" + bytes(125),
        b"RF64\xff\xff\xff\xffWAVE"
        + chunk(b"ds64", struct.pack("<QQQI", 100, len(SAMPLES), COUNT, 0))
        + format_of()
        + chunk(b"data", SAMPLES, length=0xFFFF_FFFF),
    ],
)
def test_odd_chunks(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_allclose(heard(content), SIGNAL, atol=1e-4)
    assert not caplog.records


GUID = bytes.fromhex("000000001000800000aa00389b71")
WIDE = struct.pack("<HHIH", 22, 24, 4, PCM) + GUID
BIG = SIGNAL.astype(">f4").tobytes()


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (riff(format_of(bits=8), chunk(b"data", np.rint(128 + 127 * SIGNAL).astype("u1").tobytes())), 0.01),
        (riff(format_of(bits=24), chunk(b"data", b"".join(
            int(x * 8388607).to_bytes(3, "little", signed=True) for x in SIGNAL))), 1e-6),
        (riff(format_of(bits=32), chunk(b"data", (SIGNAL * 2147483647).astype("<i4").tobytes())), 1e-6),
        (riff(format_of(FLOAT, 32), chunk(b"data", SIGNAL.astype("<f4").tobytes())), 1e-6),
        (riff(format_of(FLOAT, 64), chunk(b"data", SIGNAL.astype("<f8").tobytes())), 1e-6),
        (riff(format_of(EXTENSIBLE, 32, more=WIDE),
              chunk(b"data", (SIGNAL * 2147483647).astype("<i4").tobytes())), 1e-6),
        (b"RIFX" + struct.pack(">I", 36 + len(BIG)) + b"WAVEfmt "
         + struct.pack(">IHHIIHH", 16, FLOAT, 1, RATE, 4 * RATE, 4, 32)
         + b"data" + struct.pack(">I", len(BIG)) + BIG, 1e-6),
    ],
    ids=["u8", "s24", "s32", "f32", "f64", "24 in 32", "RIFX"],
)  # fmt: skip
def test_kinds_of_samples(content: bytes, tolerance: float) -> None:
    np.testing.assert_allclose(heard(content), SIGNAL, atol=tolerance)


@pytest.mark.parametrize("codec", ["pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav"])
def test_compressed_kinds(codec: str, encode_sound: EncodeSound) -> None:
    path = encode_sound("a.wav", SIGNAL[:, None], RATE, codec)
    assert np.corrcoef(heard(path.read_bytes())[:COUNT], SIGNAL)[0, 1] > 0.98
    assert open_audio(path.read_bytes() * 2).duration_s > 0.99


@pytest.mark.parametrize(
    "fields", [(PCM, 0, RATE), (PCM, 1, 0), (PCM, 1, 1), (PCM, 60_000, RATE), (PCM, 1, 2**31)]
)
def test_headers_that_cannot_be(fields: tuple[int, int, int]) -> None:
    raw = struct.pack("<HHIIHH", *fields, 2 * RATE, 2, 16)
    with pytest.raises(InputError):
        open_audio(riff(chunk(b"fmt ", raw), chunk(b"data", SAMPLES)))


_NAMES = st.sampled_from([b"LIST", b"junk", b"id3 ", b"bext", b"\0\0\0\0"])
_JUNK = st.tuples(_NAMES, st.binary(max_size=9), st.booleans())


@given(
    st.lists(st.tuples(st.lists(_JUNK, max_size=3), st.integers(60, 400)), min_size=1, max_size=4)
)
def test_every_sample_of_every_piece_is_heard(pieces: list[tuple[list[tuple], int]]) -> None:
    """Whatever well-formed chunks lie around it, and however many files lie one behind another."""
    content, expected = b"", []
    for junk, count in pieces:
        samples = np.arange(1, count + 1, dtype="<i2") * 7
        others = [chunk(name, inside) for name, inside, _ in junk if name.strip(b"\0")]
        behind = [
            other for other, (_, _, is_behind) in zip(others, junk, strict=False) if is_behind
        ]
        content += riff(format_of(), *others, chunk(b"data", samples.tobytes()), *behind)
        expected.append(samples / 32768)
    np.testing.assert_allclose(heard(content), np.concatenate(expected), atol=1e-6)


@given(st.binary(max_size=80), st.integers(0, len(PLAIN) - 1), st.booleans())
@example(b"\xff" * 4, 4, False)
@example(b"\xff" * 4, 40, False)
def test_a_damaged_file_gives_a_sound_or_a_sentence(
    damage: bytes, at: int, is_inserted: bool
) -> None:
    content = PLAIN[:at] + damage + PLAIN[at + (0 if is_inserted else len(damage)) :]
    try:
        assert open_audio(content).num_samples > 0
    except InputError as error:
        assert "\n" not in str(error)


def test_notes_in_any_encoding_cost_nothing() -> None:
    note = chunk(b"LIST", b"INFO" + chunk(b"IART", "Jos\u00e9".encode("latin-1")))
    np.testing.assert_allclose(
        heard(riff(format_of(), chunk(b"data", SAMPLES), note)), SIGNAL, atol=1e-4
    )
