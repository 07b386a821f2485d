"""A finished video as HTTP Live Streaming (RFC 8216): a playlist, and pieces of some seconds.

Input: a video file. Output: beside it a folder, complete or not there at all. No picture and no sound is
encoded again; pieces begin with the video's key frames. Memory does not grow with the length.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lipcast.errors import OutputError
from lipcast.media.decode import open_container
from lipcast.media.mp4 import copy_streams
from lipcast.media.target import explained, scratch_path

PLAYLIST = "index.m3u8"
_PIECE_S = 4
_EXPECTED = "expected a video file"


def hls_playlist(video: Path) -> Path:
    """Return the playlist of a video's stream."""
    return video.with_name(f"{video.stem}-hls") / PLAYLIST


def check_hls_target(video: Path) -> None:
    """Raise OutputError where something else lies in the stream's place."""
    folder = hls_playlist(video).parent
    if folder.exists() and not (folder / PLAYLIST).is_file():
        raise OutputError(
            f"{folder}: expected nothing there, or an earlier stream, got something else; move it away"
        )


def write_hls(video: Path) -> Path:
    """Write the stream of a video, in place of an earlier one; returns the playlist.

    Raises OutputError: no room, no right to write, or something else lies there.
    """
    import av

    check_hls_target(video)
    folder = hls_playlist(video).parent
    making, earlier = scratch_path(folder, ".part"), scratch_path(folder, ".earlier")
    _restore(folder, earlier)
    _clear(making, earlier)
    try:
        making.mkdir()
        with tempfile.TemporaryDirectory() as plain:
            # The muxer takes a % in a folder's name for a number to fill in, and ? and # as in addresses.
            link = Path(plain, "to")
            link.symlink_to(making.resolve())
            _check(link / PLAYLIST, _copy(video, link))
        if folder.exists():
            folder.rename(earlier)
        making.rename(folder)
    except (OSError, av.FFmpegError) as error:
        raise explained(folder, error) from error
    finally:
        _restore(folder, earlier)
        _clear(making, earlier)
    return folder / PLAYLIST


def _restore(folder: Path, earlier: Path) -> None:
    """Undo an exchange that was cut short."""
    if earlier.exists() and not folder.exists():
        earlier.rename(folder)


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(video: Path, folder: Path) -> int:
    """Copy every packet into pieces; returns the number of pictures."""
    import av

    settings = {
        "hls_time": str(_PIECE_S), "hls_playlist_type": "vod", "hls_segment_type": "fmp4",
        "hls_flags": "independent_segments", "hls_fmp4_init_filename": "init.mp4",
        "hls_segment_filename": f"{folder}/%06d.m4s",
    }  # fmt: skip
    with (
        open_container(video, expected=_EXPECTED) as whole,
        av.open(f"{folder / PLAYLIST}", "w", format="hls", options=settings) as pieces,
    ):
        return copy_streams(whole, pieces)


def _check(playlist: Path, num_pictures: int) -> None:
    """Demux what was written; raises OutputError where a picture is missing."""
    with open_container(playlist, expected=_EXPECTED) as stream:
        found = sum(packet.size > 0 for packet in stream.demux(stream.streams.video[0]))
    if found != num_pictures:
        raise OutputError(
            f"{playlist.parent}: expected {num_pictures} pictures, got {found}; "
            "the disk may be failing, write elsewhere"
        )
