"""A pose video: its latents are those of the published arithmetic, computed here in another way."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import lipcast
from clips import pictures, write_clip
from latents import watched
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.engine.snapshot_file import read_snapshot, write_snapshot
from lipcast.errors import InputError
from lipcast.media.clip import Clip, PoseClip
from lipcast.models.dit import DiT

SMALL: dict[str, Any] = {"size": "64*64", "infer_frames": 16}
"""Clips of four latent frames: every block of three crosses a border of clips, or begins at one."""
Made = tuple[list[torch.Tensor], SessionSnapshot]


@pytest.fixture
def inputs(portrait: Path, sound: Any) -> dict[str, Any]:
    return {"image": portrait, "audio": sound(4 * 0.48), "prompt": "calm"}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "pose.mkv", pictures(30))


def make(model: lipcast.Lipcast, end: int | None = None, **inputs: Any) -> Made:
    with model.stream(end_block=end, **{**SMALL, **inputs}) as session:
        found = watched(session)
        for _ in session:
            pass
        assert session.snapshot is not None
        return found, session.snapshot


def pose_of(snapshot: SessionSnapshot) -> torch.Tensor:
    """The pose latents that a snapshot keeps."""
    kept = [block.pose_CFHW for block in snapshot.blocks]
    return torch.cat([pose for pose in kept if pose is not None], dim=1)


def published(model: lipcast.Lipcast, frames: list[np.ndarray], num_latents: int) -> torch.Tensor:
    """The pose latents as published: clip by clip at once, each with its first frame in front."""
    seen = []
    for n in range(num_latents * 4):
        if n >= len(frames):
            seen.append(-torch.ones(3, 64, 64))
            continue
        picture = Image.fromarray(frames[n])
        picture = picture.resize((96, 64), Image.Resampling.BILINEAR).crop((16, 0, 80, 64))
        seen.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1)
    found = []
    for start in range(0, len(seen), 16):
        whole = torch.stack([seen[start], *seen[start : start + 16]], dim=1)
        with torch.inference_mode():
            found.append(model.bundle.vae.encode(whole[None])[0, :, 1:])
    return torch.cat(found, dim=1)


@pytest.mark.slow
def test_pose_latents_are_those_of_the_published_arithmetic(
    quick: lipcast.Lipcast, inputs: dict[str, Any], clip: Path
) -> None:
    """Through to the transformer: what is added to every token, and the end of the pose after 30 frames."""
    direction = lipcast.Direction(pose_video=clip, pose_end="black")
    _, snapshot = make(quick, direction=direction, **inputs)
    ours = pose_of(snapshot)
    theirs = published(quick, pictures(30), 12)
    assert ours.shape == theirs.shape == (16, 12, 8, 8)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_pose_is_added_to_the_tokens_of_the_noise(
    quick: lipcast.Lipcast, inputs: dict[str, Any], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    lanes_to_come: list[Any] = []
    forward, embed_noisy = DiT.forward, DiT.embed_noisy

    def watched(self: DiT, lanes: Any) -> Any:
        lanes_to_come.extend(lanes)
        return forward(self, lanes)

    def embed(self: DiT, latent: torch.Tensor, pose: torch.Tensor | None) -> torch.Tensor:
        tokens, lane = embed_noisy(self, latent, pose), lanes_to_come.pop(0)
        assert lane.latent_CFHW is latent
        seen.append((lane.conditions.first_frame, latent.clone(), tokens))
        return tokens

    monkeypatch.setattr(DiT, "forward", watched)
    monkeypatch.setattr(DiT, "embed_noisy", embed)
    make(quick, direction=lipcast.Direction(pose_video=clip), end=2, **inputs)
    dit, pose = quick.bundle.dit, published(quick, pictures(30), 8)
    for first, latent, tokens in seen:
        expected = dit.trainable_cond_mask.weight[0].detach().clone()
        for layer, x in (
            (dit.patch_embedding, latent),
            (dit.cond_encoder, pose[:, first : first + 3]),
        ):
            weight, bias = layer.weight.detach(), layer.bias.detach()
            squares = functional.unfold(x.transpose(0, 1), 2, stride=2)  # [F, C * 4, S]
            expected = expected + (weight.flatten(1) @ squares).transpose(1, 2) + bias
        assert (tokens - expected).abs().max() < 1e-4 * expected.abs().max()
    assert {first for first, _, _ in seen} == {0, 3}


@pytest.mark.parametrize(("end", "after"), [("hold", [29] * 4), ("loop", [0, 1, 2, 3])])
def test_what_comes_after_the_end(clip: Path, end: Any, after: list[int]) -> None:
    frames = pictures(30, 80, 120)
    pose = PoseClip(Clip.of(clip), end)
    expected = [frames[n] for n in (28, 29, *after)]
    for first in (28, 30, 33):
        found = pose.frames(first, 80, 120)
        assert all(np.array_equal(next(found), x) for x in expected[first - 28 :])


@pytest.mark.parametrize("fps", [10, 24, 30, 50])
def test_a_clip_of_any_rate_is_sampled_to_25_frames_a_second(tmp_path: Path, fps: int) -> None:
    frames = pictures(20)
    found = Clip.of(write_clip(tmp_path / "clip.mkv", frames, fps))
    assert found.num_frames == 20 * 25 // fps
    for n, frame in enumerate(found.frames(0, 80, 120)):
        assert np.array_equal(frame, frames[min(19, round(n * fps / 25))])


def test_a_stream_without_times_has_the_rate_of_its_header(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 80, 120, "rgb24"
        for frame in pictures(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    clip = Clip.of(tmp_path / "clip.h264")
    assert clip.num_frames == len(list(clip.frames(0, 64, 64))) == 10


def test_a_folder_of_pictures_is_a_clip(tmp_path: Path, clip: Path) -> None:
    folder = tmp_path / "pose"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    for n, picture in enumerate(pictures(30)):
        Image.fromarray(picture).save(folder / f"pose-{n}.png")  # 10 after 9, not after 1
    ours, theirs = Clip.of(folder).frames(0, 64, 64), Clip.of(clip).frames(0, 64, 64)
    assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_schedules_and_interruptions_change_nothing(
    quick: lipcast.Lipcast, inputs: dict[str, Any], clip: Path, tmp_path: Path
) -> None:
    """A pose that loops; going on in the middle of a clip of the noise, from a snapshot in a file."""
    given = {**inputs, "direction": lipcast.Direction(pose_video=str(clip), pose_end="loop")}
    whole, _ = make(quick, swap_reference=False, **given)
    plain, _ = make(quick, swap_reference=False, **inputs)
    assert not torch.equal(whole[0], plain[0])
    waves, _ = make(quick, swap_reference=False, schedule="wavefront", **given)
    first, snapshot = make(quick, 2, swap_reference=False, **given)
    write_snapshot(tmp_path / "snapshot", snapshot)
    rest, last = make(
        quick, swap_reference=False, snapshot=read_snapshot(tmp_path / "snapshot"), **given
    )
    for x, y, z in zip(whole, waves, first + rest, strict=True):
        assert (x - y).abs().max() <= 1e-4 and (x - z).abs().max() <= 1e-5
    theirs = published(quick, pictures(30) * 2, 12)
    ours = pose_of(last)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_memory_does_not_grow_with_the_clip(clip: Path) -> None:
    """One picture is held at a time, however long the clip is."""
    read: list[weakref.ref[Any]] = []

    class Picture(np.ndarray):
        """Whose end is seen: arrays themselves have no weak references."""

    def counted() -> Iterator[np.ndarray]:
        for picture in pictures(30):
            made = picture.copy().view(Picture)
            read.append(weakref.ref(made))
            yield made

    found = Clip("counted", (80, 120), np.arange(30), counted).frames(0, 64, 64)
    for n, _ in enumerate(found, 1):
        assert len(read) == n  # read as it is needed, not ahead
        assert sum(picture() is not None for picture in read) <= 2
    assert n == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "which is empty"),
        (b"no video at all", "which is not one"),
        (None, "which does not exist"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Clip.of(path)


def test_clips_without_usable_pictures_are_refused(tmp_path: Path, sound: Any, clip: Path) -> None:
    with pytest.raises(InputError, match="without pictures"):
        Clip.of(sound(0.5))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no pictures in this folder"):
        Clip.of(tmp_path / "empty")
    with pytest.raises(InputError, match="at least 16"):
        Clip.of(write_clip(tmp_path / "small.mkv", [np.zeros((8, 8, 3), np.uint8)] * 2))
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert 1 <= len(list(Clip.of(broken).frames(0, 64, 64))) <= 30
