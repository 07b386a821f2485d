"""What the lips hear of a file: channels that cancel, noise without a voice, and what is said of both."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_helpers import EncodeSound, joined

from lipcast.errors import InputError
from lipcast.media.audio import open_audio
from lipcast.media.image import load_portrait
from lipcast.media.voice_scan import VoiceScan
from sounds import EXAMPLES, syllables

RATE = 16_000
VOICES = sorted(EXAMPLES.glob("speech_*.wav"))


def voice(path: Path = VOICES[0], seconds: float = 4.0) -> np.ndarray:
    """[n] of a speaking voice, RMS 1."""
    speech = joined(open_audio(path))[1][: round(seconds * RATE)]
    return speech / speech.std()


def noise(kind: str, seconds: float, *, seed: int = 0) -> np.ndarray:
    """[n] of noise whose power falls with the frequency, RMS 1."""
    count = round(seconds * RATE)
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    spectrum *= np.maximum(hertz, 20.0) ** -{"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    samples = np.fft.irfft(spectrum, count)
    return samples / samples.std()


def level(db: float) -> float:
    return 10 ** (db / 20)


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], axis=1)


SPEECH = 0.2 * voice()


@pytest.mark.parametrize(
    ("channels", "kept"),
    [
        (stereo(SPEECH, -SPEECH), 0),
        (stereo(0.6 * SPEECH, -0.9 * SPEECH), 1),
        (stereo(SPEECH, -SPEECH + 0.002 * noise("white", 4)), 1),
    ],
)
def test_channels_that_cancel(
    channels: np.ndarray, kept: int, encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    path = encode_sound("a.wav", channels, RATE, "pcm_f32le")
    audio = open_audio(path)
    assert f"its channels cancel each other; the lips follow channel {kept + 1}" in caplog.text
    samples, speech = joined(audio)
    np.testing.assert_allclose(speech, channels[:, kept], atol=1e-5)
    np.testing.assert_allclose(samples, channels, atol=1e-5)
    assert audio.speech_std == pytest.approx(channels[:, kept].std(), rel=0.01)
    published = open_audio(path, clean=False)
    np.testing.assert_allclose(joined(published)[1], channels.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    "channels",
    [
        stereo(SPEECH, SPEECH),
        stereo(SPEECH, 0 * SPEECH),
        stereo(0 * SPEECH, SPEECH),
        stereo(SPEECH, np.roll(SPEECH, 40)),
        stereo(SPEECH, 0.2 * voice(VOICES[1])),
        np.stack([0 * SPEECH, 0 * SPEECH, SPEECH, 0 * SPEECH, 0 * SPEECH, 0 * SPEECH], axis=1),
    ],
    ids=["mono", "left", "right", "late", "two voices", "5.1 centre"],
)
def test_channels_that_do_not_cancel_are_averaged(
    channels: np.ndarray, encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    layout = {2: "stereo", 6: "5.1"}[channels.shape[1]]
    path = encode_sound("a.wav", channels, RATE, "pcm_f32le", layout=layout)
    np.testing.assert_allclose(joined(open_audio(path))[1], channels.mean(axis=1), atol=1e-5)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["white", "pink", "brown"])
@pytest.mark.parametrize("db", [-85, -69, -40, -20])
def test_noise_alone_is_silence_to_the_lips(
    kind: str, db: float, encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    path = encode_sound("a.wav", level(db) * noise(kind, 3)[:, None], RATE, "pcm_s16le")
    audio = open_audio(path)
    assert "steady noise" in caplog.text
    assert np.abs(joined(audio)[1]).max() / audio.speech_std < 0.01
    published = open_audio(path, clean=False)
    assert published.speech_std == pytest.approx(level(db), rel=0.1)


def test_a_hum_is_no_voice() -> None:
    scan = VoiceScan()
    scan.push((0.01 * np.sin(2 * np.pi * 120 * np.arange(3 * RATE) / RATE)).astype(np.float32))
    assert scan.is_noise()


@pytest.mark.parametrize("path", VOICES, ids=lambda path: path.stem)
@pytest.mark.parametrize("db", [-80, -66, -20])
def test_a_voice_is_heard_at_any_level(
    path: Path, db: float, encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    audio = open_audio(encode_sound("a.wav", level(db) * voice(path)[:, None], RATE, "pcm_s16le"))
    assert audio.speech_std == pytest.approx(level(db), rel=0.1)
    assert not caplog.records


@given(
    st.sampled_from(VOICES),
    st.sampled_from(["white", "pink", "brown"]),
    st.floats(0, 30),
    st.floats(-66, -10),
    st.integers(0, 9),
)
def test_a_voice_in_noise_is_a_voice(
    path: Path, kind: str, snr_db: float, db: float, seed: int
) -> None:
    speech = voice(path, 3)
    mixed = level(db) * (speech + level(-snr_db) * noise(kind, len(speech) / RATE, seed=seed))
    assert not is_noise(mixed)


@given(st.sampled_from(["white", "pink", "brown"]), st.floats(0.6, 12), st.integers(0, 10**6))
def test_noise_is_noise(kind: str, seconds: float, seed: int) -> None:
    assert is_noise(noise(kind, seconds, seed=seed))


def test_a_word_in_noise_and_a_whisper_are_voices() -> None:
    room = 0.003 * noise("pink", 10)
    word = 0.1 * voice(VOICES[2], 0.6)
    room[40_000 : 40_000 + len(word)] += word
    assert not is_noise(room)
    loudness = np.abs(np.convolve(syllables(4), np.hanning(800) / 400, "same"))
    assert not is_noise(0.05 * noise("white", 4) * (loudness > 0.02))


def test_blocks_of_any_size_give_one_answer() -> None:
    mixed = 0.1 * voice(VOICES[1], 3) + 0.1 * noise("pink", 3)[: 3 * RATE]
    whole, pieces = VoiceScan(), VoiceScan()
    whole.push(mixed.astype(np.float32))
    for first in range(0, len(mixed), 911):
        pieces.push(mixed[first : first + 911].astype(np.float32))
    assert whole.is_noise() == pieces.is_noise() is False


def test_silence_is_said(encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture) -> None:
    open_audio(encode_sound("a.wav", np.zeros((RATE, 1)), RATE, "pcm_s16le"))
    assert "is silent; the mouth stays closed" in caplog.text


def is_noise(samples: np.ndarray) -> bool:
    scan = VoiceScan()
    for first in range(0, len(samples), RATE):
        scan.push(samples[first : first + RATE].astype(np.float32))
    return scan.is_noise()


def two_tracks(path: Path, *, undecodable: str) -> Path:
    """A MOV file with a PCM track of 300 Hz and an AAC track of a voice; one of them of an unknown codec."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=RATE) for codec in ("pcm_s16le", "aac")]
        for stream in streams:
            stream.layout = "mono"
        for stream, kind in zip(streams, ("s16", "fltp"), strict=True):
            samples = (SPEECH[None] * (32767 if kind == "s16" else 1)).astype(
                np.int16 if kind == "s16" else np.float32
            )
            frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    content = path.read_bytes()
    for code in {"first": [b"sowt"], "both": [b"sowt", b"mp4a"]}[undecodable]:
        at = content.index(b"stsd", content.index(b"moov"))
        where = content.index(code, at)
        content = content[:where] + b"apac" + content[where + 4 :]
        content = content.replace(b"esds", b"free")
    path.write_bytes(content)
    return path


def test_a_track_that_can_be_decoded_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio = open_audio(two_tracks(tmp_path / "a.mov", undecodable="first"))
    assert audio.duration_s == pytest.approx(4, abs=0.1)
    assert "a sound track (apac) has no decoder here; another track is used" in caplog.text


def test_the_codec_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"whose sound \(apac, apac\) has no decoder here"):
        open_audio(two_tracks(tmp_path / "a.mov", undecodable="both"))


@pytest.mark.parametrize("address", ["https://example.org/a.wav", "s3://bucket/a.wav"])
def test_an_address_is_no_file(address: str) -> None:
    with pytest.raises(InputError, match=r"is an address.* download it first"):
        open_audio(address)
    with pytest.raises(InputError, match=r"is an address.* download it first"):
        load_portrait(Path(address))
