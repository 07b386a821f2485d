"""Several characters, a pose, a beginning and prompts in one video, however it is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lipcast
from latents import watched
from planned import planned
from portraits import side_by_side
from sounds import write_wav

SMALL: dict[str, Any] = {
    "size": "64*128", "infer_frames": 12, "sample_steps": 2, "swap_reference": False,
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Two blocks; the second one has a prompt of its own, and one voice ends before it."""
    two, clip = side_by_side((3, 4), 64), tmp_path / "clip"
    clip.mkdir()
    for n in range(20):
        Image.fromarray(np.full((64, 128, 3), 12 * n, np.uint8)).save(clip / f"{n}.png")
    voices = [write_wav(tmp_path / f"{n}.wav", seconds) for n, seconds in enumerate((0.9, 0.4))]
    boxes = "0,0,64,64", "64,0,64,64"
    return {
        "image": two,
        "characters": [lipcast.Character(*each) for each in zip(boxes, voices, strict=True)],
        "prompt": "calm",
        "direction": lipcast.Direction(
            prompts=[(0.4, "laughing")], pose_video=clip, pose_end="loop", continue_from=clip
        ),
        **SMALL,
    }


def latents(model: lipcast.Lipcast, **inputs: Any) -> torch.Tensor:
    with model.stream(**inputs) as session:
        found = watched(session)
        for _ in session:
            pass
    return torch.cat(found, dim=1)


@pytest.mark.slow
def test_each_part_changes_the_video(quick: lipcast.Lipcast, inputs: dict[str, Any]) -> None:
    """Else the tests below would compare videos without it."""
    expected, direction = latents(quick, **inputs), inputs["direction"]
    assert expected.shape[1] == 6
    without: list[dict[str, Any]] = [
        {"direction": replace(direction, **{name: nothing})}
        for name, nothing in (("prompts", ()), ("pose_video", None), ("continue_from", None))
    ]
    first, second = inputs["characters"]
    swapped = (
        lipcast.Character(first.region, second.audio),
        lipcast.Character(second.region, first.audio),
    )
    for change in (*without, {"characters": swapped}):
        assert not torch.equal(latents(quick, **{**inputs, **change}), expected), change


@pytest.mark.slow
def test_streamed_weights_and_a_snapshot_give_the_same_video(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    expected = latents(quick, **inputs)
    streamed = planned(quick, offload_model=True, offload_kv_cache=True)
    assert torch.equal(latents(streamed, **inputs), expected)
    with quick.stream(end_block=1, **inputs) as session:
        assert [block.index for block in session] == [0]
        snapshot = session.snapshot
    rest = latents(quick, snapshot=snapshot, **inputs)
    assert (rest - expected[:, 3:]).abs().max() <= 1e-4


@pytest.mark.slow
def test_two_processes_give_the_same_video(quick: lipcast.Lipcast, inputs: dict[str, Any]) -> None:
    options = {"fold_last_step": False, "num_clip": 1}
    with lipcast.load("tiny", device="cpu", precision="fp32", gpus=2) as ranks:
        spread = latents(ranks, **inputs, **options)
    assert (spread - latents(quick, **inputs, **options)).abs().max() < 1e-4
