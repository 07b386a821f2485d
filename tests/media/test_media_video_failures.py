"""Killed, full, forbidden, interrupted: what was finished plays, and the error is one sentence."""

from __future__ import annotations

import errno
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_helpers import number_of, numbered

from lipcast.errors import OutputError
from lipcast.media import mp4
from lipcast.media.sound_track import SoundTrack
from lipcast.media.video import VideoWriter, _Muxer, iter_frames, read_video
from programs import started

BLOCK = 12

KILLED = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from media_helpers import numbered
from lipcast.media.video import VideoWriter
writer = VideoWriter(sys.argv[2], width=64, height=64, sample_rate=16000, num_channels=1)
sound = np.full((12 * 640, 1), 0.1, np.float32)
for i in range(0, 4000, 12):
    writer.write(numbered(12, first=i), sound)
    print(i + 12, flush=True)
"""

LIMITED = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from lipcast.errors import OutputError
from lipcast.media.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
writer = VideoWriter(sys.argv[2], width=64, height=64, sample_rate=16000, num_channels=1)
try:
    for i in range(100):
        writer.write(noise, np.zeros((12 * 640, 1), np.float32))
except OutputError as error:
    print(error)
writer.close()
"""


def run(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]


def open_writer(path: Path) -> VideoWriter:
    return VideoWriter(path, width=64, height=64, sample_rate=16_000, num_channels=1)


def write_blocks(writer: VideoWriter, num_blocks: int) -> None:
    for i in range(num_blocks):
        first = writer.num_frames
        writer.write(numbered(BLOCK, first=first), np.full((BLOCK * 640, 1), 0.1, np.float32))
        assert writer.num_frames == first + BLOCK, i


def check_beginning(path: Path, at_least: int, sound_lacks: int = 4) -> int:
    """All frames are in order from the first; the sound lacks at most so many of them."""
    video = read_video(path)
    numbers = [number_of(frame) for frame in video.frames]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= at_least
    assert len(video.audio) / 640 > len(numbers) - sound_lacks
    return len(numbers)


@pytest.mark.parametrize(("suffix", "seed"), [(".mp4", 0), (".mp4", 1), (".mp4", 2), (".mkv", 3)])
def test_a_killed_writer_leaves_a_video_that_plays(suffix: str, seed: int, tmp_path: Path) -> None:
    path, rng = tmp_path / f"a{suffix}", random.Random(seed)
    with started(run(KILLED, path), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(rng.randint(5, 40)):
            written = int(child.stdout.readline())
        child.kill()
        written = int((child.stdout.read().split() or [written])[-1])
    # At most a second is lost: what the encoder looks ahead at, and the open fragment.
    check_beginning(path, written - 25)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_file_cut_anywhere_plays_up_to_there(suffix: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    writer = open_writer(whole)
    write_blocks(writer, 20)
    content = whole.read_bytes()
    counts = []
    for share in (0.3, 0.61, 0.87, 1.0):
        cut.write_bytes(content[: int(share * len(content))])
        # Inside a fragment the pictures come first, then their sound.
        counts.append(check_beginning(cut, 1, sound_lacks=BLOCK + 4))
    writer.close()
    assert counts == sorted(counts)
    assert counts[-1] >= 20 * BLOCK - 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_keeps_what_was_finished(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    limit = 150_000
    child = subprocess.run(run(LIMITED, path, limit), capture_output=True, text=True, check=False)
    assert child.returncode == 0
    assert child.stderr == ""
    assert child.stdout.count("\n") == 1
    for words in (str(path), "make room", "MiB free", "kept and plays"):
        assert words in child.stdout
    assert limit // 2 < path.stat().st_size <= limit
    assert len(list(iter_frames(path))) >= BLOCK


def test_a_full_disk_at_once_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.symlink_to("/dev/full")
    writer = open_writer(path)
    with pytest.raises(OutputError, match="No space left"):
        write_blocks(writer, 10)
    writer.close()


def failing(code: int, after: int) -> Any:
    """A stand-in for the muxer's method that fails at the given call."""
    original, calls = SoundTrack.encode, [0]

    def encode_sound(self: Any, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(code, "injected")
        original(self, *arguments)

    return encode_sound


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "make room or write elsewhere"),
        (errno.EDQUOT, "make room or write elsewhere"),
        (errno.EIO, "Input/output error"),
        (errno.ESTALE, "Stale file handle"),
    ],
)
def test_a_failure_stays_a_failure(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    monkeypatch.setattr("lipcast.media.sound_track.SoundTrack.encode", failing(code, after=8))
    writer = open_writer(path)
    with pytest.raises(OutputError, match=words) as first:
        write_blocks(writer, 20)
    with pytest.raises(OutputError) as second:
        write_blocks(writer, 1)
    assert str(first.value) == str(second.value)
    writer.close()
    writer.close()
    assert b"moof" in path.read_bytes()
    check_beginning(path, 8 * BLOCK - 25)


def test_a_disk_without_any_room_leaves_no_file(tmp_path: Path) -> None:
    child = subprocess.run(
        run(LIMITED, tmp_path / "a.mp4", 100), capture_output=True, text=True, check=True
    )
    assert "make room" in child.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_close_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    writer = open_writer(path)
    write_blocks(writer, 9)
    writer.write(numbered(5, first=9 * BLOCK), np.zeros((0, 1), np.float32))
    monkeypatch.setattr(
        "lipcast.media.sound_track.SoundTrack.encode", failing(errno.ENOSPC, after=0)
    )
    with pytest.raises(OutputError, match="make room"):
        writer.close()
    writer.close()
    check_beginning(path, 9 * BLOCK - 25)


def test_no_room_for_the_plain_copy_leaves_the_fragments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mp4, "_copy_packets", no_room)
    with open_writer(tmp_path / "a.mp4") as writer:
        write_blocks(writer, 5)
    assert check_beginning(tmp_path / "a.mp4", 60) == 60
    assert "left in fragments" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_short_plain_copy_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = mp4._copy_packets
    monkeypatch.setattr(mp4, "_copy_packets", lambda *arguments: original(*arguments) - 1)
    with open_writer(tmp_path / "a.mp4") as writer:
        write_blocks(writer, 5)
    assert b"moof" in (tmp_path / "a.mp4").read_bytes()
    assert check_beginning(tmp_path / "a.mp4", 60) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_session_completes_its_file(tmp_path: Path) -> None:
    def session() -> None:
        with open_writer(tmp_path / "a.mp4") as writer:
            write_blocks(writer, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session()
    assert b"moof" not in (tmp_path / "a.mp4").read_bytes()
    assert check_beginning(tmp_path / "a.mp4", 48) == 48


def test_an_interrupt_within_a_block_completes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _Muxer.encode_frame

    def encode_frame(self: Any, frame: np.ndarray, index: int) -> None:
        if index == 53:
            raise KeyboardInterrupt
        original(self, frame, index)

    monkeypatch.setattr(_Muxer, "encode_frame", encode_frame)
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "a.mp4") as writer:
        write_blocks(writer, 6)
    assert b"moof" not in (tmp_path / "a.mp4").read_bytes()
    assert check_beginning(tmp_path / "a.mp4", 53) == 53


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.avi", ['".avi"', ".mp4, .m4v, .mov, .mkv", "rename"]),
        ("a", ["no suffix", "rename"]),
        ("no/a.mp4", ["existing folder", "create it"]),
        ("folder.mp4", ["Is a directory"]),
        ("x" * 300 + ".mp4", ["304 bytes long", "shorter"]),
        ("file.txt/a.mp4", ["existing folder"]),
    ],
)
def test_targets_that_cannot_be_written(name: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError) as caught:
        open_writer(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_library_without_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipcast.media.h264.CODEC", "libx000")
    with pytest.raises(OutputError, match=r"H\.264 encoder .* got none; install"):
        open_writer(tmp_path / "a.mp4")


def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    path = Path("/proc/a.mp4")  # nobody may create files there, not even root
    with pytest.raises(OutputError, match="cannot be written"):
        open_writer(path)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_picture_is_heard_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Every picture that the encoder has given out is in the file, and decodes."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    mux, calls = _Muxer._mux_pictures, [0]

    def signalled(self: _Muxer, packets: list[Any]) -> None:
        calls[0] += 1
        if calls[0] == 70:
            signal.raise_signal(number)
        mux(self, packets)

    monkeypatch.setattr(_Muxer, "_mux_pictures", signalled)
    before, path = signal.signal(number, interrupt), tmp_path / "a.mp4"
    try:
        with pytest.raises(KeyboardInterrupt), open_writer(path) as writer:
            for first in range(0, 120, BLOCK):
                writer.write(numbered(BLOCK, first=first), np.zeros((BLOCK * 640, 1), np.float32))
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert mp4.num_pictures(path) == len(list(iter_frames(path))) == 70
