"""A video that goes on from another: where one file ends and the next begins, a player shows no jump."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from lipcast.errors import InputError
from lipcast.media.concat import concat
from lipcast.media.h264 import last_picture
from lipcast.media.video import VideoWriter, read_video

SEGMENT, NUM_SEGMENTS, SIDE = 24, 6, 96


def moving() -> np.ndarray:
    """A picture with fine texture that moves now and then, with noise of its own in every frame."""
    random = np.random.default_rng(5)
    texture = random.normal(128, 30, (SIDE + 200, SIDE + 200))
    frames = []
    for n in range(SEGMENT * NUM_SEGMENTS):
        x = 20 + n // 10
        picture = texture[x : x + SIDE, x : x + SIDE] + random.normal(0, 3, (SIDE, SIDE))
        frames.append(np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return np.stack(frames)


def segments(folder: Path, frames: np.ndarray, *, goes_on: bool) -> list[Path]:
    paths: list[Path] = []
    for segment in np.split(frames, NUM_SEGMENTS):
        after = paths[-1] if goes_on and paths else None
        paths.append(folder / f"{goes_on}-{len(paths)}.mp4")
        with VideoWriter(
            paths[-1], width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1, after=after
        ) as writer:
            writer.write(segment, np.zeros((SEGMENT * 640, 1), np.float32))
    return paths


def at_seams(paths: list[Path], output: Path) -> float:
    """How much more a picture changes at seams than elsewhere, in grey levels."""
    concat(paths, output)
    frames = read_video(output).frames.astype(np.int16)
    changes = np.array([np.abs(b - a).mean() for a, b in pairwise(frames)])
    seams = np.arange(1, len(changes) + 1) % SEGMENT == 0
    return float(np.median(changes[seams]) - np.median(changes[~seams]))


def test_no_jump_is_seen_at_a_seam(tmp_path: Path) -> None:
    frames = moving()
    plain = at_seams(segments(tmp_path, frames, goes_on=False), tmp_path / "plain.mp4")
    gone_on = at_seams(segments(tmp_path, frames, goes_on=True), tmp_path / "on.mp4")
    assert gone_on < 0.5 * plain
    assert plain > 0.5, "the test would see a jump"


def test_the_pictures_are_still_those_that_were_given(tmp_path: Path) -> None:
    frames = moving()
    shown = [read_video(p).frames for p in segments(tmp_path, frames, goes_on=True)]
    error = np.abs(np.concatenate(shown).astype(np.int16) - frames).mean(axis=(1, 2, 3))
    assert error.max() < 3 * np.median(error)


def test_files_say_the_same_again(tmp_path: Path) -> None:
    """A segment that is made again after a kill must be the same file."""
    frames = moving()
    first = [path.read_bytes() for path in segments(tmp_path, frames, goes_on=True)]
    assert first == [path.read_bytes() for path in segments(tmp_path, frames, goes_on=True)]


@pytest.mark.parametrize("num_frames", [1, 24, 130])
def test_last_picture(tmp_path: Path, num_frames: int) -> None:
    frames = np.resize(moving(), (num_frames, SIDE, SIDE, 3))
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1) as writer:
        writer.write(frames, np.zeros((0, 1), np.float32))
    with av.open(str(path)) as container:
        *_, last = container.decode(video=0)
    assert np.array_equal(last_picture(path, (SIDE, SIDE)).to_ndarray(), last.to_ndarray())


def test_what_it_goes_on_from_must_be_a_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no")
    with (
        pytest.raises(InputError, match="a video file to go on from"),
        VideoWriter(
            tmp_path / "b.mp4", width=SIDE, height=SIDE, sample_rate=16_000, num_channels=1,
            after=tmp_path / "a.mp4",
        ) as writer,
    ):  # fmt: skip
        writer.write(moving()[:1], np.zeros((640, 1), np.float32))
    small = segments(tmp_path, moving(), goes_on=False)[0]
    with pytest.raises(InputError, match="expected a video of 64x32 to go on from, got 96x96"):
        last_picture(small, (32, 64))
