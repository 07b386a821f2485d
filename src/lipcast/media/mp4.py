"""Video files after the muxer: what is left after a failure, and a plain copy.

Input: paths. Output: an MP4 without a broken end; its number of pictures; an MP4 with its index in front.
Nothing here encodes or decodes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lipcast.env import logger
from lipcast.media.target import container_of, scratch_path

_LOG = logger("media.mp4")


def keep_complete(path: Path) -> None:
    """Cut an interrupted file after its last whole fragment; remove it if it has none."""
    path = path.resolve()
    if not path.is_file():
        return
    size = path.stat().st_size
    # Readers of Matroska stop at the last whole cluster by themselves.
    end = size if container_of(path) == "matroska" else _complete_end(path, size)
    if end == 0:
        path.unlink()
    elif end < size:
        os.truncate(path, end)


def num_pictures(path: Path) -> int:
    """Count the pictures in a video file without decoding one; 0 where there is no such file."""
    import av

    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (OSError, ValueError, IndexError, av.FFmpegError):
        return 0


def _complete_end(path: Path, size: int) -> int:
    """Return where the last whole `mdat` box ends."""
    end = position = 0
    with path.open("rb") as file:
        while position + 16 <= size:
            file.seek(position)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:], "big")
            position += max(length, 8)
            if header[4:8] == b"mdat" and position <= size:
                end = position
    return end


def make_plain(path: Path, expected: int) -> None:
    """Turn a complete fragmented MP4 into a plain one with its index in front.

    The fragmented file plays, but states no number of pictures, a sound one AAC frame too long,
    and to some players no length at all. Nothing is encoded: 1.7 s and 25 MB for an hour.
    Where this fails (it needs the file's size once more), or does not find all `expected` pictures,
    the fragmented file stays.
    """
    import av

    target = path.resolve()
    plain = scratch_path(target, ".part")
    try:
        if _copy_packets(target, plain, container_of(path)) >= expected:
            plain.replace(target)
    except (OSError, av.FFmpegError) as error:
        _LOG.warning("%s: complete, but left in fragments (%s)", path, error)
    finally:
        plain.unlink(missing_ok=True)


def _copy_packets(source: Path, target: Path, container: str) -> int:
    """Copy every packet; returns the number of pictures."""
    import av

    options = {"movflags": "faststart"}
    with (
        av.open(f"file:{source}") as fragmented,
        av.open(f"file:{target}", "w", format=container, container_options=options) as plain,
    ):
        plain.metadata.update(metadata_of(fragmented))
        return copy_streams(fragmented, plain)


def metadata_of(container: Any) -> dict[str, str]:
    """Return the notes of a file; not what its container is, which another muxer writes itself."""
    return {name: text for name, text in container.metadata.items() if name.lower() == "comment"}


def copy_streams(source: Any, target: Any) -> int:
    """Copy every packet of an open container into another; returns the number of pictures."""
    copied = 0
    streams = [target.add_stream_from_template(stream) for stream in source.streams]
    for packet in source.demux():
        if packet.size:
            copied += packet.stream.type == "video"
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return copied
