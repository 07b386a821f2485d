"""Directed videos on several processes are those of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rank_groups import SMALL, on_ranks, settings

import lipcast
from latents import watched
from lipcast.errors import UsageError
from sounds import EXAMPLES, write_wav

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = 5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = write_wav(tmp_path_factory.mktemp("sound") / "voice.wav", BLOCKS * 0.48)
    return {"image": EXAMPLES / "portrait_0.png", "audio": path, "prompt": "calm"}


@pytest.fixture
def layouts(single: lipcast.Lipcast, decoder: Path) -> Callable[..., lipcast.Lipcast]:
    return lambda **gpus: on_ranks(single, settings(decoder), **gpus)


def latents(model: lipcast.Lipcast, **inputs: Any) -> list[torch.Tensor]:
    with model.stream(**{**SMALL, **inputs}) as session:
        found = watched(session)
        for _ in session:
            pass
    return found


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [{"gpus": 2, "ulysses_size": 1}, {"gpus": 2, "dit_fsdp": True}])
def test_prompts_over_time(
    single: lipcast.Lipcast, layouts: Any, inputs: dict[str, Any], gpus: dict[str, Any]
) -> None:
    """At the reference's own change, and before and after it; a pipeline, and shared weights."""
    direction = lipcast.Direction(prompts=[(0.5, "laughing"), (0.98, "sad"), (1.9, "loud")])
    expected = latents(single, direction=direction, schedule="sequential", **inputs)
    with layouts(**gpus) as model:
        assert_close(latents(model, direction=direction, **inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gpus", [{"gpus": 2, "ulysses_size": 1}, {"gpus": 3, "enable_vae_parallel": True}]
)
def test_a_pose_and_a_beginning(
    single: lipcast.Lipcast, layouts: Any, inputs: dict[str, Any], tmp_path: Path, gpus: Any
) -> None:
    """Encoded by the rank that decodes, whether it has steps or not; and gone on with from a snapshot."""
    for n in range(20):
        picture = np.full((80, 80, 3), 12 * n, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{n}.png")
    direction = lipcast.Direction(pose_video=tmp_path, pose_end="loop", continue_from=tmp_path)
    given = {**inputs, "direction": direction, "num_clip": 1, "swap_reference": False}
    expected = latents(single, schedule="sequential", **given)
    with layouts(**gpus) as model:
        with model.stream(end_block=1, **{**SMALL, **given}) as session:
            assert len(list(session)) == 1
            snapshot = session.snapshot
        assert_close(latents(model, **given), expected)
        assert_close(latents(model, snapshot=snapshot, **given), expected[1:])


@pytest.mark.slow
def test_a_prompt_that_changes_while_a_pipeline_runs(
    single: lipcast.Lipcast, layouts: Any, inputs: dict[str, Any]
) -> None:
    """It holds from the next block that begins, as on one device; processes that share weights refuse."""

    def changed(model: lipcast.Lipcast) -> list[torch.Tensor]:
        given = {**SMALL, **inputs, "swap_reference": False}
        with model.stream(**given) as session:
            found = watched(session)
            session.set_context(single.bundle.encode_prompt("laughing"))
            for _ in session:
                pass
        return found

    with layouts(gpus=2, ulysses_size=1) as model:
        assert_close(changed(model), changed(single))
    with (
        layouts(gpus=2, dit_fsdp=True) as model,
        pytest.raises(UsageError, match="share the weights"),
    ):
        changed(model)
