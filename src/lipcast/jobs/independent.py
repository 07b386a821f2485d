"""Segments that are made independently of each other, and the cross-fades between them.

Every segment begins with the portrait and has its own piece of the voice, cut at a quiet place. It also makes
the first block after its piece; the next segment makes the same 0.48 s as its own first block. The two are
cross-faded, picture by picture, into a video of one block between the segments.
Input: the voice; the edge files that renderers write. Output: pieces of the voice; all videos in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.errors import InputError, UsageError
from lipcast.media.audio import open_audio
from lipcast.media.split import BLOCK_FRAMES, Piece, split_audio
from lipcast.media.target import explained
from lipcast.media.video import VideoWriter

Pictures = NDArray[np.uint8]
_LEAST_BLOCKS = 2
"""Least length of a piece: its first block may belong to a cross-fade, and something must be left."""
_LEAST_SEGMENT_BLOCKS = 4
"""Least length of a segment: a cut may lie a quarter of it from the desired place, on both sides."""


class Block(Protocol):
    """One block of pictures, as a renderer makes it."""

    @property
    def frames(self) -> Pictures: ...


_Block = TypeVar("_Block", bound=Block)


def pieces_of(voice: Path, folder: Path, segment_s: float) -> list[Piece]:
    """Cut the voice; each piece but the last has one block of the next. Raises UsageError."""
    least_s = _LEAST_SEGMENT_BLOCKS * BLOCK_FRAMES / VIDEO_FPS
    if segment_s < least_s - 1e-6:
        raise UsageError(
            f"--segment: expected at least {least_s:g} s for independent segments, got "
            f"{segment_s:g} s; submit with a longer one"
        )
    return split_audio(
        voice, folder, segment_s=segment_s, name="voice", least_blocks=_LEAST_BLOCKS, overlap_blocks=1
    )  # fmt: skip


class Edges:
    """Takes the blocks that belong to fades out of a segment."""

    def __init__(self, *, head: bool, tail: bool) -> None:
        """`head`, `tail`: whether a segment comes before this one, and after it."""
        self._has = {"head": head, "tail": tail}
        self._found: dict[str, Pictures] = {}

    def body(self, blocks: Iterable[_Block]) -> Iterator[_Block]:
        """Yield the blocks between the cross-fades."""
        rest = iter(blocks)
        if self._has["head"]:
            self._found["head"] = next(rest).frames
        held = next(rest)
        for block in rest:
            yield held
            held = block
        if self._has["tail"]:
            self._found["tail"] = held.frames
        else:
            yield held

    def save(self, path: Path) -> None:
        """Write the blocks that were taken out. Raises OutputError."""
        try:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._found)
        except OSError as error:
            raise explained(path, error) from error


def fade(tail_THWC: Pictures, head_THWC: Pictures) -> Pictures:
    """Cross-fade two videos of T pictures: picture i has (i + 1) / (T + 1) of the second."""
    assert tail_THWC.shape == head_THWC.shape
    share = np.arange(1, len(tail_THWC) + 1, dtype=np.float32) / (len(tail_THWC) + 1)
    share_T111 = share[:, None, None, None]
    mixed = (1 - share_T111) * tail_THWC + share_T111 * head_THWC
    return np.rint(mixed).astype(np.uint8)


def with_fades(videos: Sequence[Path], edges: Sequence[Path], voice: Path) -> list[Path]:
    """Make the cross-fades; return them and the segments in order. Raises OutputError."""
    audio = open_audio(voice)
    ordered = [videos[0]]
    for (before, after), video in zip(pairwise(edges), videos[1:], strict=True):
        pictures = fade(_read(before, "tail"), _read(after, "head"))
        path = video.with_name(f"fade-{video.stem}.mp4")
        count, height, width, _ = pictures.shape
        silence = np.zeros((count * audio.sample_rate // VIDEO_FPS, audio.num_channels), np.float32)
        with VideoWriter(
            path, width=width, height=height,
            sample_rate=audio.sample_rate, num_channels=audio.num_channels,
            after=ordered[-1],
        ) as writer:  # fmt: skip
            writer.write(pictures, silence)
        ordered += [path, video]
    return ordered


def _read(path: Path, name: str) -> Pictures:
    with np.load(path, allow_pickle=False) as found:
        if name not in found:
            raise InputError(
                f"{path}: the {name} of a segment is missing; remove the job and submit it again"
            )
        pictures: Pictures = found[name]
        return pictures
