"""HTTP Live Streaming beside a video: the same packets, in pieces that begin with key frames."""

from __future__ import annotations

import errno
import json
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from media_helpers import numbered, tone

from lipcast.cli.main import main
from lipcast.errors import OutputError
from lipcast.media.decode import open_container
from lipcast.media.hls import hls_playlist, write_hls
from lipcast.media.target import scratch_path
from lipcast.media.video import VideoWriter

NUM_FRAMES = 25 * 9


@pytest.fixture(params=["plain", "it's 100% a: b", "ten%d", "what? a#b"])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param / f"{request.param}.mp4"
    path.parent.mkdir()
    return written(path)


def written(path: Path) -> Path:
    frames = numbered(NUM_FRAMES, 0)
    size = frames.shape[1]
    with VideoWriter(path, width=size, height=size, sample_rate=16_000, num_channels=1) as writer:
        writer.write(frames, tone(NUM_FRAMES / 25, 16_000).astype(np.float32))
    return path


def packets(path: Path, kind: str) -> list[bytes]:
    # FFmpeg reads playlists as addresses, in which ? and # mean something.
    with tempfile.TemporaryDirectory() as plain:
        link = Path(plain, "to")
        link.symlink_to(path.parent)
        with open_container(link / path.name, expected="a video") as container:
            stream = next(s for s in container.streams if s.type == kind)
            return [bytes(packet) for packet in container.demux(stream) if packet.size]


def test_the_stream_holds_the_video(video: Path) -> None:
    playlist = write_hls(video)
    assert playlist == hls_playlist(video)
    assert packets(playlist, "video") == packets(video, "video")
    assert packets(playlist, "audio") == packets(video, "audio")
    lengths = [
        float(line.removeprefix("#EXTINF:").rstrip(","))
        for line in playlist.read_text().splitlines()
        if line.startswith("#EXTINF")
    ]
    assert lengths == pytest.approx([4, 4, 1])
    assert playlist.read_text().endswith("#EXT-X-ENDLIST\n")


def test_every_piece_can_be_begun_with(tmp_path: Path) -> None:
    folder = write_hls(written(tmp_path / "a.mp4")).parent
    for piece in sorted(folder.glob("*.m4s")):
        alone = tmp_path / "alone.mp4"
        alone.write_bytes((folder / "init.mp4").read_bytes() + piece.read_bytes())
        with av.open(str(alone)) as container:
            assert next(p for p in container.demux(video=0) if p.size).is_keyframe


def test_an_earlier_stream_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    video = written(tmp_path / "a.mp4")
    first = write_hls(video)
    (first.parent / "left-over").touch()
    again = write_hls(video)
    assert not (again.parent / "left-over").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a-hls"}
    again.unlink()
    with pytest.raises(OutputError, match="got something else"):
        write_hls(video)


def test_a_full_disk_leaves_the_earlier_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = written(tmp_path / "a.mp4")
    before = write_hls(video).read_bytes()

    def full(*_given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lipcast.media.hls._copy", full)
    with pytest.raises(OutputError, match="make room"):
        write_hls(video)
    assert hls_playlist(video).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a-hls"}


def test_an_exchange_cut_short_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the worst moment: the earlier stream is out of the way, the new one not in its place."""
    video = written(tmp_path / "a.mp4")
    playlist = write_hls(video)
    (playlist.parent / "mark").touch()
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_hls(video)
    assert (playlist.parent / "mark").exists()
    playlist.parent.rename(scratch_path(playlist.parent, ".earlier"))  # what a kill would leave
    write_hls(video)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a-hls"}


def test_a_missing_picture_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = written(tmp_path / "a.mp4")
    from lipcast.media import hls

    copy = hls._copy
    monkeypatch.setattr(hls, "_copy", lambda *given: copy(*given) + 1)
    with pytest.raises(OutputError, match=f"expected {NUM_FRAMES + 1} pictures"):
        write_hls(video)
    assert not hls_playlist(video).exists()


def test_concat_writes_it_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part, output = written(tmp_path / "part.mp4"), tmp_path / "out.mp4"
    assert main(["concat", str(part), str(part), "-o", str(output), "--hls", "--json"]) == 0
    playlist = Path(json.loads(capsys.readouterr().out)["hls"])
    assert len(packets(playlist, "video")) == 2 * NUM_FRAMES
