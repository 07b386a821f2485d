"""Sources of clips: drawn ones, and those of a folder with files of every kind."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from lipcast.errors import InputError
from lipcast.media.video import VideoWriter
from lipcast_train.data.clips import ClipSource
from lipcast_train.data.folder import FolderClips
from lipcast_train.data.procedural import ProceduralClips
from lipcast_train.data.stamp import stamp_of
from lipcast_train.data.voices import FolderVoices
from sounds import syllables, write_wav


def test_drawn_clips_are_whole_and_the_same_each_time() -> None:
    source: ClipSource = ProceduralClips(num_clips=3, seed=1, num_blocks=2, side=48)
    clip, again = source.clip(1), source.clip(1)
    assert len(source) == 3
    assert clip.frames_THWC.shape == (24, 48, 48, 3)
    assert clip.frames_THWC.dtype == np.uint8
    assert clip.wave_N.shape == (24 * 640,)
    assert abs(clip.wave_N).max() <= 1
    assert clip.portrait_HWC.shape == (48, 48, 3)
    assert clip.mouth is not None
    assert len(clip.mouth.opening_T) == 24
    assert (clip.frames_THWC == again.frames_THWC).all()
    assert (clip.wave_N == again.wave_N).all()
    assert clip.prompt == again.prompt
    for left, top, width, height in clip.face_boxes.values():
        assert 0 <= left < left + width <= 48
        assert 0 <= top < top + height <= 48
    with pytest.raises(IndexError, match="from 0 to 2"):
        source.clip(3)


def test_people_can_come_again() -> None:
    source = ProceduralClips(num_clips=4, num_people=2, num_blocks=1, side=32)
    assert source.person(0) == source.person(2) != source.person(1)
    assert (source.clip(0).portrait_HWC == source.clip(2).portrait_HWC).all()
    assert (source.clip(0).wave_N != source.clip(2).wave_N).any()


def test_voices_of_a_folder_fill_any_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_wav(tmp_path / "one.wav", 1.0)
    write_wav(tmp_path / "two.wav", 0.6, rate=22_050)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with caplog.at_level(logging.WARNING):
        voices = FolderVoices(tmp_path)
    assert "broken.wav" in caplog.text
    assert len(voices.files) == 2
    wave = voices.speech(50_000, 7)
    assert len(wave) == 50_000
    assert abs(wave).max() > 0.1
    assert (wave == voices.speech(50_000, 7)).all()
    clip = ProceduralClips(2, num_blocks=1, side=32, voices=voices).clip(0)
    assert len(clip.wave_N) == 12 * 640


def test_a_folder_without_voices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected sound files"):
        FolderVoices(tmp_path)


def _write_video(path: Path, num_frames: int, *, fps: int = 25, level: int = 1) -> Path:
    """Grey pictures that grow brighter by a level each, wider than high, and a beep at every second."""
    size = (64, 96)
    pictures = np.stack([np.full((*size, 3), 20 + level * i, np.uint8) for i in range(num_frames)])
    sound = syllables(num_frames / fps)[:, None]
    with VideoWriter(
        path, width=96, height=64, sample_rate=16_000, num_channels=1, fps=fps
    ) as writer:
        writer.write(pictures, sound)
    return path


def _without_sound(source: Path, target: Path) -> None:
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)


def test_a_folder_of_videos_is_cut_into_whole_blocks(tmp_path: Path) -> None:
    _write_video(tmp_path / "a.mp4", 53)
    (tmp_path / "a.txt").write_text("a cheerful\nsmile\n", encoding="utf-8")
    _write_video(tmp_path / "b.mkv", 30)
    source = FolderClips(tmp_path, num_blocks=2, side=32)
    assert len(source) == 3
    first, second, third = (source.clip(index) for index in range(3))
    assert [clip.prompt for clip in (first, second, third)] == ["a cheerful smile"] * 2 + [""]
    assert first.frames_THWC.shape == (24, 32, 32, 3)
    assert (first.portrait_HWC == first.frames_THWC[0]).all()
    means = np.concatenate([c.frames_THWC.mean(axis=(1, 2, 3)) for c in (first, second)])
    assert abs(means - (20 + np.arange(48))).max() < 3
    assert first.mouth is None
    wave, mouth = source.voice(0)
    assert (wave == first.wave_N).all() and mouth.opening_T.shape == (24,)
    again = source.clip(0)
    assert (again.frames_THWC == first.frames_THWC).all()
    for clip, start in ((first, 0.0), (second, 0.96)):
        truth = syllables(53 / 25)[round(start * 16_000) :][: 24 * 640]
        assert clip.wave_N.shape == truth.shape
        assert np.corrcoef(clip.wave_N, truth)[0, 1] > 0.9
    source.close()


def test_another_frame_rate_becomes_25(tmp_path: Path) -> None:
    _write_video(tmp_path / "fast.mp4", 61, fps=50, level=2)
    source = FolderClips(tmp_path, num_blocks=2, side=32)
    frames = source.clip(0).frames_THWC
    assert abs(frames.mean(axis=(1, 2, 3)) - (20 + 4 * np.arange(24))).max() < 4
    source.close()


def test_what_cannot_be_used_is_skipped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = _write_video(tmp_path / "good.mp4", 26)
    _write_video(tmp_path / "short.mp4", 10)
    _without_sound(good, tmp_path / "mute.mp4")
    (tmp_path / "text.mov").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:200])
    (tmp_path / "notes.md").write_text("not looked at")
    with caplog.at_level(logging.WARNING):
        source = FolderClips(tmp_path, num_blocks=2, side=32)
    assert len(source) == 1
    assert {path.name for path in source.skipped} == {
        "short.mp4",
        "mute.mp4",
        "text.mov",
        "cut.mp4",
    }
    assert "4 of 5 videos were skipped" in caplog.text
    assert "0.96 s or more, got 0.40 s" in caplog.text
    assert "with sound, got one without" in caplog.text
    with pytest.raises(IndexError, match="from 0 to 0"):
        source.clip(1)


def test_a_folder_without_any_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        FolderClips(tmp_path / "nowhere")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="1 were skipped"):
        FolderClips(tmp_path)


def test_a_stamp_knows_other_videos_and_prompts_but_not_what_is_made_of_them(
    tmp_path: Path,
) -> None:
    video, prompt = tmp_path / "a.mp4", tmp_path / "a.txt"
    video.write_bytes(b"1")
    first = stamp_of(tmp_path)
    (tmp_path / "style.safetensors").write_bytes(b"weights")
    assert stamp_of(tmp_path) == first
    prompt.write_text("calm")
    second = stamp_of(tmp_path)
    video.write_bytes(b"12")
    assert len({first, second, stamp_of(tmp_path)}) == 3


@pytest.mark.parametrize("source", [ProceduralClips(2, num_blocks=1, side=32)])
def test_a_voice_is_that_of_its_clip(source: ProceduralClips) -> None:
    clip, (wave, mouth) = source.clip(1), source.voice(1)
    assert clip.mouth is not None
    assert (wave == clip.wave_N).all() and (mouth.opening_T == clip.mouth.opening_T).all()
