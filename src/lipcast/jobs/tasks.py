"""The segments of a job, their files, and the interface of what makes them.

Input: a lease and an estimate. Output: tasks in order; the files that are joined to the whole video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from lipcast.config.models import VIDEO_FPS
from lipcast.jobs.independent import Edges, pieces_of, with_fades
from lipcast.jobs.store import Lease
from lipcast.media.split import BLOCK_FRAMES
from lipcast.media.voices import one_length, write_mix
from lipcast.weights.disk import replacing

BLOCK_S = BLOCK_FRAMES / VIDEO_FPS
VOICES = "voices"
"""Folder of the pieces of a voice, for independent segments."""
MIX = "mix.wav"
"""What several characters say together, in a job's folder."""
JOB_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "keep_segments": False,
        "independent": False,
        "anonymous": False,
        "webhook": None,
        "hls": False,
    }
)
"""Fields of a job that a request for one video has not: how it is made, and who is told."""


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """Length and size of the video of a job; sizes in pixels. `plan` goes into the result."""

    num_blocks: int
    height: int
    width: int
    plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """One segment to make: from `snapshot` (None: the portrait) up to `end_block`, not included."""

    number: int
    first_block: int
    end_block: int
    snapshot: Path | None
    video_to: Path
    snapshot_to: Path
    before: Path | None = None
    """The video of the segment that it goes on from."""
    audio: Path | None = None
    """The voice of an independent segment; None: the job's."""
    overlaps: tuple[bool, bool] | None = None
    """Of an independent segment: whether one comes before it, and after it."""

    @property
    def edges(self) -> Edges | None:
        """Frames at the edges, which an independent segment writes to `snapshot_to`."""
        return self.overlaps and Edges(head=self.overlaps[0], tail=self.overlaps[1])


class SegmentRenderer(Protocol):
    """Makes the segments of jobs: a model on this machine, workers of a cluster, or a stand-in."""

    width: int
    """Number of threads that may use it at a time."""

    def estimate(self, request: Mapping[str, Any]) -> JobEstimate:
        """Return what a job will be. Raises what makes it impossible."""

    def render(self, request: Mapping[str, Any], task: SegmentTask) -> Mapping[str, Any]:
        """Write the video and the snapshot of one segment; returns its report."""


def tasks_of(lease: Lease, estimate: JobEstimate) -> list[SegmentTask]:
    """Return all segments of a job, in order."""
    request, folder = lease.job.request, lease.folder

    def task(number: int, first: int, end: int, snapshot: Path | None, **more: Any) -> SegmentTask:
        making = folder / f"making-{number:05d}"
        to = making.with_suffix(".mp4"), making.with_suffix(".past")
        return SegmentTask(number, first, end, snapshot, *to, **more)

    if request.get("independent"):
        pieces = pieces_of(Path(request["audio"]), folder / VOICES, request["segment_s"])
        last = len(pieces) - 1
        return [
            task(
                n, 0, -(-piece.num_frames // BLOCK_FRAMES), None,
                audio=piece.path, overlaps=(n > 0, n < last),
            )
            for n, piece in enumerate(pieces)
        ]  # fmt: skip
    length, num_blocks = max(1, round(request["segment_s"] / BLOCK_S)), estimate.num_blocks
    ends = [*range(length, num_blocks, length), num_blocks]
    return [task(0, 0, ends[0], None)] + [
        task(n, first, end, snapshot_path(folder, n - 1), before=video_path(folder, n - 1))
        for n, (first, end) in enumerate(pairwise(ends), 1)
    ]


def parts_of(lease: Lease, num_segments: int) -> list[Path]:
    """Return the videos that are joined to the whole one, in order."""
    request, numbers = lease.job.request, range(num_segments)
    videos = [video_path(lease.folder, number) for number in numbers]
    if not request.get("independent"):
        return videos
    edges = [snapshot_path(lease.folder, number) for number in numbers]
    return with_fades(videos, edges, Path(request["audio"]))


def whole_sound(lease: Lease) -> Path:
    """Return the sound of a job's video; what several characters say together is mixed once."""
    request = lease.job.request
    characters = request.get("characters")
    if not characters:
        return Path(request["audio"])
    path = lease.folder / MIX
    if not path.is_file():
        # What moves the lips is not used here, and how clean it is was said before.
        voices = one_length([voice for _, voice in characters], clean=False)
        with replacing(path) as file:
            write_mix(voices, file)
    return path


def video_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:05d}.mp4"


def snapshot_path(folder: Path, number: int) -> Path:
    """Return the file of a segment's snapshot; "past" is its name in the job folders that users have."""
    return folder / f"past-{number:05d}.safetensors"
