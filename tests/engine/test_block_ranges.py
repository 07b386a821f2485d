"""A video made in ranges of blocks: whoever makes them, and whenever, the frames and samples are the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from lipcast.engine.snapshot import BlockRange, BlockSnapshot, SessionSnapshot
from lipcast.engine.snapshot_file import read_snapshot, write_snapshot
from lipcast.engine.sound_timeline import AudioTimeline
from lipcast.errors import InputError
from lipcast.media.audio import open_audio
from planned import planned

OPTIONS: dict[str, Any] = {"size": "64*64", "infer_frames": 16}
Found = tuple[np.ndarray, np.ndarray, SessionSnapshot]


def block_range(
    model: lipcast.Lipcast, snapshot: SessionSnapshot | None, end: int | None, **inputs: Any
) -> Found:
    with model.stream(snapshot=snapshot, end_block=end, **inputs) as session:
        blocks = list(session)
        frames = np.concatenate([block.frames for block in blocks])
        audio = np.concatenate([block.audio for block in blocks])
        assert blocks[0].index == (snapshot.next_block if snapshot else 0)
        assert session.snapshot is not None
        return frames, audio, session.snapshot


def in_block_ranges(
    model: lipcast.Lipcast,
    length: int,
    *,
    keep: Callable[[SessionSnapshot], SessionSnapshot] = lambda p: p,
    **inputs: Any,
) -> list[Found]:
    found: list[Found] = []
    snapshot, total = None, 4
    for end in range(length, total + length, length):
        found.append(block_range(model, snapshot, min(end, total), **inputs))
        snapshot = keep(found[-1][2])
    return found


def change_at_seams(frames: np.ndarray, length: int) -> np.ndarray:
    """Grey levels from the last frame of each range to the first of the next."""
    firsts = np.arange(12 * length, len(frames), 12 * length)
    return np.abs(frames[firsts].astype(int) - frames[firsts - 1]).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(("schedule", "length"), [("sequential", 3), ("wavefront", 1)])
def test_a_snapshot_from_a_file_gives_the_same_video(
    quick: lipcast.Lipcast, portrait: Path, sound: Any, tmp_path: Path, schedule: str, length: int
) -> None:
    inputs = {"image": portrait, "audio": sound(1.8), "schedule": schedule, **OPTIONS}
    through_file = tmp_path / "past.safetensors"

    def keep(snapshot: SessionSnapshot) -> SessionSnapshot:
        write_snapshot(through_file, snapshot)
        return read_snapshot(through_file)

    once = in_block_ranges(quick, length, **inputs)
    again = in_block_ranges(quick, length, keep=keep, **inputs)
    for (frames, audio, _), (other_frames, other_audio, _) in zip(once, again, strict=True):
        assert np.array_equal(frames, other_frames) and np.array_equal(audio, other_audio)
    whole = quick.generate(**inputs)
    assert np.array_equal(np.concatenate([audio for _, audio, _ in once]), whole.audio)
    joined = np.concatenate([frames for frames, _, _ in once])
    assert joined.shape == whole.frames.shape
    assert np.array_equal(joined[: 12 * length], whole.frames[: 12 * length])
    # Not the very rings, whose past has no end: but nobody can see where the video went on.
    difference = np.abs(joined.astype(int) - whole.frames)
    assert difference.mean() < 0.2 and difference.reshape(-1, 64 * 64 * 3).mean(axis=1).max() < 1
    before, after = change_at_seams(joined, length), change_at_seams(whole.frames, length)
    assert np.abs(before - after).max() < 0.1


def test_planned_memory_goes_on_from_a_snapshot_too(
    portrait: Path, sound: Any, quick: lipcast.Lipcast
) -> None:
    inputs = {"image": portrait, "audio": sound(1.9), **OPTIONS}
    _, _, snapshot = block_range(quick, None, 2, **inputs)
    frames, audio, _ = block_range(planned(quick, kv_precision="fp32"), snapshot, None, **inputs)
    expected, samples, _ = block_range(quick, snapshot, None, **inputs)
    assert np.abs(frames.astype(int) - expected).max() <= 2
    assert np.array_equal(audio, samples)


@pytest.mark.parametrize(("seconds", "firsts"), [(3, (1, 5)), (43, (40, 83, 84))])
def test_features_are_those_of_the_uninterrupted_voice(
    quick: lipcast.Lipcast, sound: Any, seconds: int, firsts: tuple[int, ...]
) -> None:
    path = sound(seconds)
    spec = quick.spec(lipcast.api.make_options(OPTIONS), height=64, width=64)
    whole = quick.timeline(open_audio(path), spec)
    count = whole.num_blocks or 0
    expected = [whole.features(block) for block in range(count)]
    for first in firsts:
        window = torch.zeros(1)
        snapshot = SessionSnapshot(first, (BlockSnapshot(window, window),), window)
        later = quick.timeline(open_audio(path), spec, BlockRange(snapshot))
        for block in range(first, count):
            features, known = later.features(block), expected[block]
            assert features is not None and known is not None and torch.equal(features, known), (
                block
            )
        assert later.features(count) is None


def test_sound_before_a_range_is_not_kept(quick: lipcast.Lipcast, sound: Any) -> None:
    """Of 100 s (6 MB of samples) the last block needs less than the window of its features."""
    path, window = sound(100), torch.zeros(1)
    spec = quick.spec(lipcast.api.make_options(OPTIONS), height=64, width=64)
    snapshot = SessionSnapshot(207, (BlockSnapshot(window, window),), window)
    timeline = quick.timeline(open_audio(path), spec, BlockRange(snapshot))
    assert isinstance(timeline, AudioTimeline)
    held: list[weakref.ref[Any]] = []
    read = timeline._source.read

    def watched() -> Any:
        chunk = read()
        if chunk is not None:
            whole = chunk.samples
            while whole.base is not None:
                whole = whole.base
            held.append(weakref.ref(whole))
        return chunk

    timeline._source.read = watched  # type: ignore[method-assign]
    assert timeline.features(207) is not None
    assert len(held) > 10 and sum(chunk() is not None for chunk in held) <= 2


def test_a_video_goes_on_without_what_its_steps_took(
    quick: lipcast.Lipcast, portrait: Path, sound: Any, tmp_path: Path
) -> None:
    """As it has to after a change of size or steps: an estimate, of all blocks or of the older ones."""
    inputs = {"image": portrait, "audio": sound(1.9), **OPTIONS}
    _, _, snapshot = block_range(quick, None, 3, **inputs)
    expected, _, _ = block_range(quick, snapshot, None, **inputs)
    path = tmp_path / "past.safetensors"
    for known in (0, 1, 3):
        blocks = [replace(block, inputs=()) for block in snapshot.blocks[: 3 - known]]
        less = replace(snapshot, blocks=(*blocks, *snapshot.blocks[3 - known :]))
        write_snapshot(path, less)
        counts = [len(block.inputs) for block in read_snapshot(path).blocks]
        assert counts == [0] * (3 - known) + [3] * known
        frames, _, _ = block_range(quick, read_snapshot(path), None, **inputs)
        error = np.abs(frames.astype(int) - expected).mean()
        assert (error == 0) == (known == 3) and error < 2


def test_a_damaged_snapshot_is_refused(
    quick: lipcast.Lipcast, portrait: Path, sound: Any, tmp_path: Path
) -> None:
    _, _, snapshot = block_range(quick, None, 1, image=portrait, audio=sound(0.9), **OPTIONS)
    path = tmp_path / "past.safetensors"
    write_snapshot(path, snapshot)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="hash"):
        read_snapshot(path)
    path.write_bytes(data.replace(b"lipcast past 2", b"lipcast past 1"))
    with pytest.raises(InputError, match='past 2"\\), got "lipcast past 1"; start'):
        read_snapshot(path)
    with pytest.raises(InputError, match="is missing"):
        read_snapshot(tmp_path / "none")
