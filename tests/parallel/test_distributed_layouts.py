"""Every layout makes the video that one process makes: frames, latents, and what a continuation needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_groups import SMALL, on_ranks, settings

import lipcast
from latents import watched
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.schedule import Unit
from lipcast.errors import CancelledError, RankError, UsageError
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.planning.layouts import stage_steps
from sounds import EXAMPLES, syllables, write_wav

pytestmark = pytest.mark.usefixtures("one_thread")
FOUR_STEPS = {"fold_last_step": False}
BLOCKS = 5
"""More than a window of two, and a block after the new reference has passed every stage."""


class Made:
    """A video and all that is known of it."""

    def __init__(self, model: lipcast.Lipcast, **inputs: Any) -> None:
        with model.stream(prompt="calm", **{**SMALL, **inputs}) as session:
            latents = watched(session)
            self.frames = np.concatenate([block.frames for block in session])
            self.snapshot, self.report = session.snapshot, session.report()
        self.latents = torch.cat(latents, dim=1)

    def assert_same(self, other: Made, tolerance: float) -> None:
        assert self.latents.shape == other.latents.shape
        largest = other.latents.abs().max()
        assert (self.latents - other.latents).abs().max() <= tolerance * largest
        assert self.frames.shape == other.frames.shape
        assert np.abs(self.frames.astype(int) - other.frames).max() <= (tolerance > 0)
        assert self.snapshot is not None and other.snapshot is not None
        assert self.snapshot.next_block == other.snapshot.next_block
        for mine, theirs in zip(self.snapshot.blocks, other.snapshot.blocks, strict=True):
            assert len(mine.inputs) == len(theirs.inputs) > 0
            for x, y in zip(mine.inputs, theirs.inputs, strict=True):
                assert (x - y).abs().max() <= tolerance * largest


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = write_wav(tmp_path_factory.mktemp("sound") / "voice.wav", BLOCKS * 0.48)
    return {"image": EXAMPLES / "portrait_0.png", "audio": path}


@pytest.fixture(scope="module")
def expected(single: lipcast.Lipcast, inputs: dict[str, Any]) -> Callable[..., Made]:
    """The video of one process, made once for each set of options."""
    made: dict[str, Made] = {}

    def make(**options: Any) -> Made:
        name = repr(sorted(options.items()))
        if name not in made:
            made[name] = Made(single, **inputs, **options)
        return made[name]

    return make


LAYOUTS = (
    # what is asked for, what comes of it, options, how near
    ({"gpus": 2, "num_gpus_dit": 2}, "2 stages, last stage decodes", {}, 0),
    ({"gpus": 3, "num_gpus_dit": 3}, "3 stages, last stage decodes", {}, 0),
    ({"num_gpus_dit": 4}, "4 stages, last stage decodes", FOUR_STEPS, 0),
    (
        {"num_gpus_dit": 2, "ulysses_size": 1, "enable_vae_parallel": True},
        "2 stages, VAE rank",
        FOUR_STEPS,
        0,
    ),
    ({"ulysses_size": 2}, "1 stage, Ulysses 2, last stage decodes", {}, 1e-5),
    ({"ulysses_size": 4}, "1 stage, Ulysses 4, last stage decodes", {}, 1e-5),
    ({"num_gpus_dit": 4, "ulysses_size": 2}, "2 stages, Ulysses 2, last stage decodes", {}, 1e-5),
    (
        {"num_gpus_dit": 2, "ulysses_size": 1, "dit_fsdp": True},
        "2 stages, sharded weights, last stage decodes",
        {},
        0,
    ),
    (
        {"num_gpus_dit": 3, "ulysses_size": 3},
        "1 stage, Ulysses 3, last stage decodes",
        {},
        1e-5,
    ),
    (
        {"num_gpus_dit": 3, "ulysses_size": 3, "enable_vae_parallel": True},
        "1 stage, Ulysses 3, VAE rank",
        {},
        1e-5,
    ),
)


QUICK = (0, 4, 7, 8)
"""Two stages, Ulysses with even and with uneven heads (2 + 1 + 1), shards; the others are slow tests."""


@pytest.mark.parametrize(
    ("gpus", "layout", "options", "tolerance"),
    [
        pytest.param(*each, marks=() if number in QUICK else pytest.mark.slow)
        for number, each in enumerate(LAYOUTS)
    ],
)
def test_layout_equals_one_process(
    single: lipcast.Lipcast,
    decoder: Path,
    inputs: dict[str, Any],
    expected: Callable[..., Made],
    gpus: dict[str, Any],
    layout: str,
    options: dict[str, Any],
    tolerance: float,
) -> None:
    """Sequential and, in stages of several steps, wavefront; a second video on the same ranks."""
    asked = GenerateOptions(**options)
    with on_ranks(single, settings(decoder), asked, **gpus) as model:
        assert (
            isinstance(model.backend, DistributedModel) and str(model.backend.plan.layout) == layout
        )
        first = Made(model, **inputs, **options)
        first.assert_same(expected(**options), tolerance)
        if any(
            len(steps) > 1
            for steps in stage_steps(4 if options else 3, model.backend.plan.layout.stages)
        ):
            second = Made(model, **inputs, **options, schedule="wavefront")
            second.assert_same(expected(**options), max(tolerance, 1e-5))
    ranks = first.report["ranks"]
    assert ranks[0]["rank"].startswith("stage 0")
    assert all(rank["seconds"]["compute_s"] + rank["seconds"]["decode_s"] > 0 for rank in ranks)


@pytest.mark.parametrize(
    "gpus",
    [
        {"num_gpus_dit": 2, "ulysses_size": 1},
        pytest.param(
            {"num_gpus_dit": 2, "ulysses_size": 1, "dit_fsdp": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_video_goes_on_where_one_process_left_it(
    single: lipcast.Lipcast, decoder: Path, inputs: dict[str, Any], gpus: dict[str, Any]
) -> None:
    """Stages of two steps and of one refill their rings; sharded weights are gathered by both."""
    before = Made(single, **inputs, end_block=3)
    rest = Made(single, **inputs, snapshot=before.snapshot)
    with on_ranks(single, settings(decoder), **gpus) as model:
        Made(model, **inputs, snapshot=before.snapshot).assert_same(rest, 0)


@pytest.mark.slow
def test_weights_in_host_memory_and_bounded_memory(
    single: lipcast.Lipcast,
    decoder: Path,
    inputs: dict[str, Any],
    expected: Callable[..., Made],
) -> None:
    """Shards that are offloaded, and stages whose memory is planned."""
    offloaded = settings(decoder, memory=MemoryOptions(offload_model=True))
    with on_ranks(single, offloaded, num_gpus_dit=2, ulysses_size=1, dit_fsdp=True) as model:
        Made(model, **inputs).assert_same(expected(), 0)
    bounded = settings(decoder, memory=MemoryOptions(vram="300MB", offload_model=True))
    with on_ranks(single, bounded, num_gpus_dit=2, ulysses_size=1) as model:
        made = Made(model, **inputs)
    made.assert_same(expected(), 0)
    peaks = [rank["memory"]["vram_peak_bytes"] for rank in made.report["ranks"]]
    assert all(0 < peak < 300e6 for peak in peaks)


def test_what_a_layout_cannot_do_is_refused(
    single: lipcast.Lipcast, decoder: Path, inputs: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"the model has 4 attention heads.*possible near it"):
        on_ranks(single, settings(decoder), ulysses_size=5)
    with on_ranks(single, settings(decoder), num_gpus_dit=3) as model:
        with pytest.raises(UsageError, match="at least 3 evaluated steps"):
            Made(model, **inputs, sample_steps=2)
        Made(model, **inputs, end_block=1)
    with pytest.raises(RankError, match="load it again"):
        Made(model, **inputs)


def test_one_video_at_a_time(
    single: lipcast.Lipcast, decoder: Path, inputs: dict[str, Any]
) -> None:
    """A video that is left early gives way to the next; whoever still asks for it is told."""
    with on_ranks(single, settings(decoder), num_gpus_dit=2, ulysses_size=1) as model:
        left = model.stream(prompt="calm", **SMALL, **inputs)
        next(left)
        whole = Made(model, **inputs)
        assert len(whole.frames) == BLOCKS * 12
        with pytest.raises(CancelledError, match="another video"):
            left.executor.start(3, torch.zeros(1))
        with pytest.raises(CancelledError, match="another video"):
            left.executor.run((Unit(3, 0),))
        with pytest.raises(CancelledError, match="another video"):
            list(left)
        assert len(Made(model, **inputs, end_block=1).frames) == 12


def test_live_sound_needs_no_later_sound(
    single: lipcast.Lipcast, decoder: Path, inputs: dict[str, Any]
) -> None:
    """A block leaves all stages with no more sound than its own and what the speech encoder hears ahead."""
    features = syllables(2.4)
    ready = []
    for model in (single, on_ranks(single, settings(decoder), num_gpus_dit=3)):
        with model.session(image=inputs["image"], prompt="calm", **SMALL) as live:
            live.push(features[: 16_000 * 2])
            ready.append([block.index for block in live.ready()])
            live.finish()
            assert len(ready[-1]) + len(list(live)) == BLOCKS
        model.close()
    assert ready[0] == ready[1] and len(ready[0]) >= 2
