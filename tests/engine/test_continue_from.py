"""A video that goes on from a clip: what its first block sees is that clip, and nobody sees the join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from clips import pictures, write_clip
from lipcast.errors import InputError
from lipcast.lab.footage import Footage, survey
from lipcast.lab.seams import seams
from lipcast.media.clip import Clip
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE

SMALL: dict[str, Any] = {"size": "64*64", "infer_frames": 16}


@pytest.fixture
def inputs(portrait: Path, sound: Any) -> dict[str, Any]:
    return {"image": portrait, "audio": sound(0.48), "prompt": "calm", **SMALL}


@pytest.mark.parametrize("count", [90, 30])
def test_the_first_block_conditions_on_the_latents_of_the_last_frames(
    quick: lipcast.Lipcast,
    inputs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """The last 73 frames, computed here in one piece; a short clip stands still before it begins."""
    clip = write_clip(tmp_path / "shot.mkv", [p[8:72, 28:92] for p in pictures(count)])
    seen: list[torch.Tensor] = []
    real = DiT.prefill

    def prefill(self: DiT, ref: torch.Tensor, motion: torch.Tensor, *more: Any) -> None:
        seen.append(motion.clone())
        real(self, ref, motion, *more)

    monkeypatch.setattr(DiT, "prefill", prefill)
    quick.generate(direction=lipcast.Direction(continue_from=clip), **inputs)
    frames = [p[8:72, 28:92] for p in pictures(count)]
    last = np.stack([frames[0]] * max(0, 73 - count) + frames[-73:])
    video = torch.from_numpy(last).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        expected = quick.bundle.vae.encode(video)[0]
    assert expected.shape[1] == 19 and len(seen) == 1
    assert (seen[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_the_join_is_no_seam(tiny: lipcast.Lipcast, inputs: dict[str, Any], tmp_path: Path) -> None:
    """By the clip ratio of `lipcast evaluate`: 1.7 at this join, 3.8 where the portrait begins anew."""
    first = tiny.generate(**inputs).frames
    clip = write_clip(tmp_path / "shot.mkv", list(first))
    again = {**inputs, "seed": 7}
    ratios = {}
    for name, direction in (
        ("on", lipcast.Direction(continue_from=clip)),
        ("cut", lipcast.Direction()),
    ):
        frames = np.concatenate([first, tiny.generate(direction=direction, **again).frames])
        found = seams(survey(Footage.of_frames(list(frames))), {"clip": len(first)})
        ratios[name] = found[0].value or 0.0
    assert 0 < ratios["on"] < min(2.5, ratios["cut"])


def test_a_clip_of_another_aspect_is_refused(
    quick: lipcast.Lipcast, inputs: dict[str, Any], tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "wide.mkv", pictures(2))
    with pytest.raises(InputError, match="with the aspect of the video, 64x64, got 120x80"):
        quick.stream(direction=lipcast.Direction(continue_from=clip), **inputs)


def test_a_clip_as_lipcast_writes_it_is_read_to_its_last_frame(
    quick: lipcast.Lipcast, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """With sound, which counts for nothing here."""
    video = quick.generate(**inputs)
    path = video.save(tmp_path / "shot.mp4")
    clip = Clip.of(path)
    assert clip.num_frames == len(video.frames) == 12
    last = clip.last(1, 64, 64)[0].astype(int)
    assert np.abs(last - video.frames[-1]).mean() < 12


def test_the_portrait_is_encoded_as_far_as_the_reference_needs(
    quick: lipcast.Lipcast,
    inputs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five frames beside a clip, 73 without one; the reference is the same."""
    clip = write_clip(tmp_path / "shot.mkv", [p[8:72, 28:92] for p in pictures(3)])
    lengths: list[int] = []
    references: list[torch.Tensor] = []
    real, real_prefill = VideoVAE.encode_still, DiT.prefill

    def encode_still(self: VideoVAE, image: torch.Tensor, num_frames: int) -> torch.Tensor:
        lengths.append(num_frames)
        return real(self, image, num_frames)

    def prefill(self: DiT, ref: torch.Tensor, *more: Any) -> None:
        references.append(ref.clone())
        real_prefill(self, ref, *more)

    monkeypatch.setattr(VideoVAE, "encode_still", encode_still)
    monkeypatch.setattr(DiT, "prefill", prefill)
    for direction in (lipcast.Direction(continue_from=clip), lipcast.Direction()):
        quick.generate(direction=direction, **inputs)
    assert lengths == [5, 73]
    assert torch.equal(*references)
