"""`lipcast concat` and `lipcast split-audio`: nothing lost, nothing moved, nothing encoded again."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from media_helpers import flashes, number_of, numbered, offsets_ms, tone, wav

from lipcast.cli.main import main
from lipcast.cli.types import parse_seconds
from lipcast.media.split import BLOCK_FRAMES, cut_blocks
from lipcast.media.video import VideoWriter, iter_frames, read_video

RATE = 16_000


def video(path: Path, frames: np.ndarray, audio: np.ndarray, rate: int = RATE) -> Path:
    size, channels = frames.shape[1], audio.shape[1]
    with VideoWriter(
        path, width=size, height=size, sample_rate=rate, num_channels=channels
    ) as writer:
        writer.write(frames, audio)
    return path


def parts(folder: Path, lengths: tuple[int, ...], suffix: str = ".mp4") -> list[Path]:
    first, made = 0, []
    sound = tone(sum(lengths) / 25, RATE).astype(np.float32)
    for length in lengths:
        piece = sound[first * 640 : (first + length) * 640]
        path = folder / f"it's part {first}{suffix}"
        made.append(video(path, numbered(length, first), piece))
        first += length
    return made


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pictures_are_copied_and_sound_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    made = parts(tmp_path, (12, 37, 24, 12), suffix)
    output = tmp_path / f"out{suffix}"
    assert main(["concat", *map(str, made), "-o", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["frames"], document["samples"]) == (85, 85 * 640)
    assert packets(output) == [packet for path in made for packet in packets(path)]
    joined = read_video(output)
    expected = np.concatenate([read_video(path).frames for path in made])
    assert np.array_equal(joined.frames, expected)
    assert [number_of(frame) for frame in joined.frames] == list(range(85))
    # The phase of the tone runs through: a gap of one sample would be seen.
    middle = joined.audio[2048 : 84 * 640, 0]
    t = (np.arange(len(middle)) + 2048) / RATE
    assert np.abs(middle - 0.3 * np.sin(2 * np.pi * 440 * t)).max() < 0.05
    assert not list(tmp_path.glob(".*"))


def test_light_and_sound_stay_together_and_a_voice_can_replace_them(tmp_path: Path) -> None:
    frames, audio = flashes(150, RATE)
    made = [
        video(tmp_path / f"{i}.mp4", frames[i : i + 50], audio[i * 640 : (i + 50) * 640])
        for i in (0, 50, 100)
    ]
    listed = tmp_path / "list.txt"
    listed.write_text("# in order\n" + "".join(f"file '{path.name}'\n" for path in made))
    voice = wav(np.rint(audio[:, 0] * 32767), tmp_path / "voice.wav")
    for more in ([], ["--audio", str(voice)]):
        output = tmp_path / "out.mp4"
        assert main(["concat", str(listed), "-o", str(output), "--quiet", *more]) == 0
        assert np.abs(offsets_ms(output)).max() < 2
    assert np.array_equal(
        np.stack(list(iter_frames(output))), np.concatenate([read_video(p).frames for p in made])
    )


def test_list_quotes_as_ffmpeg_does(tmp_path: Path) -> None:
    made = parts(tmp_path, (12, 12))
    names = [path.name.replace("'", r"'\''") for path in made]
    listed = tmp_path / "list.ffconcat"
    listed.write_text("ffconcat version 1.0\n" + "".join(f"file '{name}'\n" for name in names))
    assert main(["concat", str(listed), "-o", str(tmp_path / "out.mp4")]) == 0
    listed.write_text(f"file '{names[0]}'\nduration 3\n")
    assert main(["concat", str(listed), "-o", str(tmp_path / "other.mp4")]) == 3
    assert not (tmp_path / "other.mp4").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = numbered(12)
    silence = np.zeros((12 * 640, 1), np.float32)
    one = video(tmp_path / "one.mp4", frames, silence)
    big = video(tmp_path / "big.mp4", numbered(12, size=128), silence)
    stereo = video(tmp_path / "stereo.mp4", frames, np.repeat(silence, 2, axis=1))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(one.read_bytes()[:200])
    out = tmp_path / "out.mp4"
    for other, code, words in (
        (big, 3, "128x128"), (stereo, 3, "channels"), (broken, 3, "broken"),
        (tmp_path / "none.mp4", 3, "does not exist"),
    ):  # fmt: skip
        assert main(["concat", str(one), str(other), "-o", str(out)]) == code
        assert words in capsys.readouterr().err
        assert not out.exists()
    before = one.read_bytes()
    assert main(["concat", str(one), str(one), "-o", str(one)]) == 6
    assert one.read_bytes() == before
    assert main(["concat", str(one), "-o", str(tmp_path / "no" / "out.mp4")]) == 6


def test_a_voice_is_cut_in_silence_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(3).integers(-9000, 9000, 10 * RATE + 77)
    for block in (7, 13):  # silence around two borders near the wished ones at 6 and 13
        border = block * BLOCK_FRAMES * 640
        noise[border - 900 : border + 900] = 0
    source = wav(noise, tmp_path / "voice.wav")
    folder = tmp_path / "pieces"
    words = ["split-audio", str(source), "--segment", "2.88s", "-o", str(folder), "--json"]
    assert main(words) == 0
    pieces = json.loads(capsys.readouterr().out)["pieces"]
    assert [piece["first_frame"] for piece in pieces][:3] == [0, 7 * 12, 13 * 12]
    assert all(piece["frames"] % BLOCK_FRAMES == 0 for piece in pieces[:-1])
    found = []
    for piece in pieces:
        with wave.open(piece["path"]) as file:
            assert file.getnframes() == piece["samples"]
            found.append(np.frombuffer(file.readframes(piece["samples"]), "<i2"))
    assert np.array_equal(np.concatenate(found), noise)
    assert len(list(folder.iterdir())) == len(pieces)


def test_cuts_are_near_the_wished_places() -> None:
    power = np.random.default_rng(0).random(12 * 1000)
    cuts = cut_blocks(power, 40)
    lengths = np.diff([0, *cuts, 1000])
    assert lengths.min() >= 10 and lengths[:-1].max() <= 50
    assert cut_blocks(np.ones(12 * 30), 10) == [10, 20]
    assert cut_blocks(np.ones(12 * 3), 10) == []


def test_lengths_of_time() -> None:
    assert [parse_seconds(t) for t in ("60s", "2min", "1.5", "0.5h", "250ms")] == [
        60, 120, 1.5, 1800, 0.25,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="60s or 2min"):
        parse_seconds("long")
    assert main(["split-audio", "voice.wav", "--segment", "long"]) == 2
