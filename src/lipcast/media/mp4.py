"""Files around a muxer: may the target be written, what is left after a failure, a plain copy.

Input: paths. Output: sentences for OutputError; an MP4 without a broken end; an MP4 with its
index in front. Nothing here encodes or decodes.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from lipcast.env import logger
from lipcast.errors import OutputError

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""What a suffix means to the muxer."""

_LOG = logger("media.mp4")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def container_of(path: Path) -> str:
    """The muxer's name for a path that `check_target` let pass."""
    return CONTAINERS[path.suffix.lower()]


def check_target(path: Path) -> None:
    """Raise OutputError where writing would fail at once. Leaves the disk as it was."""
    if path.suffix.lower() not in CONTAINERS:
        got = f'"{path.suffix}"' if path.suffix else "no suffix"
        raise OutputError(
            f"{path}: expected a name that ends in {', '.join(CONTAINERS)}, got {got}; rename it"
        )
    if not path.parent.is_dir():
        raise OutputError(f"{path}: expected an existing folder, got {path.parent}; create it")
    try:
        target = path.resolve()  # a link that leads nowhere yet must stay
        existed = target.exists()
        target.open("ab").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise explained(path, error) from error


def explained(path: Path, error: Exception) -> OutputError:
    """The error of writing `path` as one sentence; for a full disk with what is free."""
    code: int = getattr(error, "errno", None) or 0
    reason = os.strerror(code) if code in errno.errorcode else str(error)
    if code not in _FULL:
        return OutputError(
            f"{path}: expected to write the video there, got: {reason}; "
            "check the folder and its rights"
        )
    free_mib = shutil.disk_usage(path.parent).free / 2**20
    return OutputError(
        f"{path}: expected room for the video, got: {reason} ({free_mib:.1f} MiB free in "
        f"{path.parent}); make room or write elsewhere. What was finished is kept and plays"
    )


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


def _complete_end(path: Path, size: int) -> int:
    """Where the last whole `mdat` box ends."""
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


def make_plain(path: Path, num_pictures: int) -> None:
    """Turn a complete fragmented MP4 into a plain one with its index in front.

    The fragmented file plays, but states no number of pictures, a sound one AAC frame too long,
    and to some players no length at all. Nothing is encoded: 1.7 s and 25 MB for an hour.
    Where this fails (it needs the file's size once more), or does not find all `num_pictures`,
    the fragmented file stays.
    """
    import av

    target = path.resolve()
    plain = target.with_name(f".{target.name}.part")
    try:
        if _copy_packets(target, plain, container_of(path)) >= num_pictures:
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
    num_pictures = 0
    streams = [target.add_stream_from_template(stream) for stream in source.streams]
    for packet in source.demux():
        if packet.size:
            num_pictures += packet.stream.type == "video"
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return num_pictures
