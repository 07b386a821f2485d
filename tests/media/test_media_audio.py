"""Sound files of every kind, broken ones, and live PCM."""

from __future__ import annotations

import logging
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from media_helpers import EncodeSound, drain, joined, tone, wav

from lipcast.errors import InputError
from lipcast.media.audio import open_audio
from lipcast.media.decode import read_sound

LOSSLESS = [
    ("a.wav", "pcm_s16le"),
    ("b.wav", "pcm_s24le"),
    ("c.wav", "pcm_f32le"),
    ("d.wav", "pcm_u8"),
    ("e.wav", "pcm_f64le"),
    ("f.flac", "flac"),
    ("g.m4a", "alac"),
    ("h.mka", "pcm_s16le"),
]
LOSSY = [
    ("a.mp3", "libmp3lame"),
    ("b.m4a", "aac"),
    ("c.ogg", "libopus"),
    ("d.mp4", "libmp3lame"),
    ("e.webm", "libopus"),
    ("f.mov", "aac"),
]


def level(signal: np.ndarray) -> float:
    """Amplitude of a tone, its ends left out."""
    middle = signal[len(signal) // 4 : -len(signal) // 4]
    return float(np.sqrt(2 * np.mean(np.square(middle.astype(np.float64)))))


@pytest.mark.parametrize(("name", "codec"), LOSSLESS)
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_lossless_files_are_read_whole(
    name: str, codec: str, rate: int, encode_sound: EncodeSound
) -> None:
    signal = tone(1.3, rate, channels=2)
    audio = open_audio(encode_sound(name, signal, rate, codec))
    assert (audio.sample_rate, audio.num_channels) == (rate, 2)
    assert audio.num_samples == len(signal)
    assert audio.num_speech_samples == -(-len(signal) * 16_000 // rate)
    assert audio.duration_s == len(signal) / rate
    samples, speech = joined(audio)
    assert samples.dtype == speech.dtype == np.float32
    assert speech.shape == (audio.num_speech_samples,)
    step = 2 / 256 if codec == "pcm_u8" else 2 / 32768
    np.testing.assert_allclose(samples, signal, atol=step)
    assert level(speech) == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize(("name", "codec"), LOSSY)
def test_lossy_files_keep_length_level_and_place(
    name: str, codec: str, encode_sound: EncodeSound
) -> None:
    rate = 48_000
    signal = tone(1.31, rate, channels=2)
    signal[:4800] = signal[-4800:] = 0
    audio = open_audio(encode_sound(name, signal, rate, codec))
    # MP4 states its length in milliseconds; nothing of the codec's padding is left.
    assert abs(audio.num_samples - len(signal)) <= 48
    samples, speech = joined(audio)
    assert len(samples) == audio.num_samples
    assert level(speech) == pytest.approx(0.3, abs=0.02)
    onset = int(np.flatnonzero(np.abs(samples[:, 0]) > 0.1)[0])
    assert abs(onset - 4800 - 16) < 48  # 0.1 of 0.3 is reached 6 samples after the start


def test_two_equal_channels_stay_as_loud(encode_sound: EncodeSound) -> None:
    rate = 16_000
    mono = open_audio(encode_sound("m.wav", tone(0.5, rate), rate, "pcm_s16le"))
    stereo = open_audio(encode_sound("s.wav", tone(0.5, rate, channels=2), rate, "pcm_s16le"))
    np.testing.assert_array_equal(joined(mono)[1], joined(stereo)[1])


def test_speech_is_the_mean_of_the_channels(encode_sound: EncodeSound) -> None:
    signal = np.random.default_rng(0).normal(0, 0.1, (8000, 2)).astype(np.float32)
    samples, speech = joined(open_audio(encode_sound("n.wav", signal, 16_000, "pcm_f32le")))
    np.testing.assert_array_equal(samples, signal)
    np.testing.assert_allclose(speech, signal.mean(axis=1), atol=1e-7)


def test_surround_becomes_stereo_and_mean(encode_sound: EncodeSound) -> None:
    signal = np.random.default_rng(0).normal(0, 0.1, (16_000, 6)).astype(np.float32)
    path = encode_sound("s.wav", signal, 16_000, "pcm_f32le", layout="5.1")
    audio = open_audio(path)
    assert audio.num_channels == 2
    samples, speech = joined(audio)
    assert samples.shape == (16_000, 2)
    np.testing.assert_allclose(speech, signal.mean(axis=1), atol=1e-6)
    own = [np.corrcoef(samples[:, side], signal[:, side])[0, 1] for side in (0, 1)]
    other = [np.corrcoef(samples[:, side], signal[:, 1 - side])[0, 1] for side in (0, 1)]
    assert min(own) > 0.5 > 0.05 > max(np.abs(other))


@pytest.mark.parametrize("rate", [96_000, 40_000])
def test_other_rates_are_muxed_at_48_khz(rate: int, encode_sound: EncodeSound) -> None:
    audio = open_audio(encode_sound("h.wav", tone(0.7, rate), rate, "pcm_s16le"))
    assert (audio.sample_rate, audio.num_samples) == (48_000, round(0.7 * 48_000))
    samples, _ = joined(audio)
    np.testing.assert_allclose(samples[200:-200], tone(0.7, 48_000)[200:-200], atol=2e-4)


def test_chunks_last_a_second_each(encode_sound: EncodeSound) -> None:
    audio = open_audio(encode_sound("l.mp3", tone(3.21, 44_100), 44_100, "libmp3lame"))
    lengths = [(len(c.samples), len(c.speech)) for c in drain(audio)]
    assert lengths[:-1] == [(44_100, 16_000)] * 3
    assert lengths[-1][0] == audio.num_samples - 3 * 44_100
    assert lengths[-1][1] == audio.num_speech_samples - 48_000
    assert audio.read() is None


def test_mean_and_deviation_are_those_of_the_whole_speech(encode_sound: EncodeSound) -> None:
    rng = np.random.default_rng(3)
    signal = (rng.normal(0.05, 0.1, (70_000, 2)) * np.linspace(0, 1, 70_000)[:, None]).astype(
        np.float32
    )
    audio = open_audio(encode_sound("n.wav", signal, 22_050, "pcm_f32le"))
    speech = joined(audio)[1].astype(np.float64)
    assert audio.speech_mean == pytest.approx(speech.mean(), rel=1e-9)
    assert audio.speech_std == pytest.approx(speech.std(), rel=1e-9)


def test_bytes_are_the_same_as_the_file(encode_sound: EncodeSound) -> None:
    path = encode_sound("a.flac", tone(0.5, 16_000), 16_000, "flac")
    np.testing.assert_array_equal(
        joined(open_audio(path.read_bytes()))[1], joined(open_audio(path))[1]
    )


def test_names_are_only_names(encode_sound: EncodeSound) -> None:
    path = encode_sound("a.wav", tone(0.1, 16_000), 16_000, "pcm_s16le")
    odd = path.rename(path.with_name("http: 50%d ünd\nmehr.wav"))
    assert open_audio(odd).num_samples == 1600


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        for _ in range(300):
            file.writeframes(np.zeros(8000, "<i2").tobytes())
    tracemalloc.start()
    audio = open_audio(path)
    while audio.read():
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert audio.duration_s == 300
    assert peak_bytes < 2_000_000  # the samples as float32: 9.6 MB and 19.2 MB


def test_a_file_that_changes_between_scan_and_reading_is_refused(encode_sound: EncodeSound) -> None:
    path = encode_sound("a.wav", tone(2, 16_000), 16_000, "pcm_s16le")
    audio = open_audio(path)
    encode_sound("a.wav", tone(1.5, 16_000), 16_000, "pcm_s16le")
    with pytest.raises(InputError, match="it changed"):
        drain(audio)


# Broken files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"just a text\n" * 50, ["looks like a text file", "convert it"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), ["no sound in it"]),
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_files_that_are_no_sound(
    content: bytes,
    words: list[str],
    as_bytes: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "it.wav"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_audio(content if as_bytes else path)
    for word in [
        *words,
        "expected a sound file",
        f"{len(content)} bytes" if as_bytes else str(path),
    ]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_a_folder_and_a_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_audio(tmp_path / "no.wav")
    with pytest.raises(InputError, match="a folder"):
        open_audio(tmp_path)
    picture = Path(__file__).parents[2] / "examples" / "portrait_0.png"
    with pytest.raises(InputError, match="no sound in it"):
        open_audio(picture)


def test_a_wav_without_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"empty\.wav"):
        open_audio(wav(np.zeros(0), tmp_path / "empty.wav"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 47_999])
def test_samples_that_are_no_numbers(value: float, place: int, encode_sound: EncodeSound) -> None:
    signal = tone(3, 16_000)
    signal[place] = value
    path = encode_sound("nan.wav", signal, 16_000, "pcm_f32le")
    with pytest.raises(InputError, match="NaN or infinity"):
        open_audio(path)


@pytest.mark.parametrize(("name", "codec"), [*LOSSLESS[:1], *LOSSLESS[5:6], *LOSSY[:1]])
def test_half_a_file_is_used_with_a_warning(
    name: str, codec: str, encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    path = encode_sound(name, tone(4, 16_000), 16_000, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "lipcast"):
        audio = open_audio(path)
    assert 1.3 < audio.duration_s < 2.6
    assert len(joined(audio)[0]) == audio.num_samples
    assert "cut short" in caplog.text
    assert "expected 4.0" in caplog.text


def test_half_an_m4a_has_no_index(encode_sound: EncodeSound) -> None:
    path = encode_sound("a.m4a", tone(2, 16_000), 16_000, "aac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="is broken"):
        open_audio(path)


def test_damaged_packets_are_left_out_with_a_warning(
    encode_sound: EncodeSound, caplog: pytest.LogCaptureFixture
) -> None:
    path = encode_sound("a.mka", tone(4, 48_000, channels=2), 48_000, "aac")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "lipcast"):
        audio = open_audio(path)
    assert 1.5 < audio.duration_s < 4.1
    assert "damaged" in caplog.text


def test_a_change_of_channels_is_followed_and_of_rate_refused(encode_sound: EncodeSound) -> None:
    rate = 44_100
    stereo = encode_sound("s.mp3", tone(0.5, rate, channels=2), rate, "libmp3lame").read_bytes()
    mono = encode_sound("m.mp3", tone(0.5, rate), rate, "libmp3lame").read_bytes()
    samples, _ = joined(open_audio(stereo + mono))
    assert samples.shape[1] == 2
    assert level(samples[:, 0]) == pytest.approx(0.3, abs=0.03)
    slow = encode_sound("x.mp3", tone(0.5, 22_050), 22_050, "libmp3lame").read_bytes()
    with pytest.raises(InputError, match="one sampling rate"):
        open_audio(stereo + slow)


def test_read_sound_keeps_all_channels(encode_sound: EncodeSound) -> None:
    signal = np.random.default_rng(0).normal(0, 0.1, (9000, 6)).astype(np.float32)
    path = encode_sound("s.wav", signal, 48_000, "pcm_f32le", layout="5.1")
    samples, rate, start_s = read_sound(path)
    assert (rate, start_s) == (48_000, 0.0)
    np.testing.assert_array_equal(samples, signal)


def test_a_title_in_an_old_encoding_costs_nothing(encode_sound: EncodeSound) -> None:
    path = encode_sound("a.mp3", tone(0.5, 44_100), 44_100, "libmp3lame")
    title = b"Caf\xe9 \xff\xfe"
    frame = b"TIT2" + struct.pack(">I", len(title) + 1) + b"\0\0" + b"\3" + title
    size = len(frame)
    header = b"ID3\3\0\0" + bytes((0, 0, size >> 7, size & 127))
    path.write_bytes(header + frame + path.read_bytes())
    assert open_audio(path).duration_s == pytest.approx(0.5, abs=0.06)
