"""Every layout makes the video that one process makes: frames, latents, and what a continuation needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crews import SMALL, alone, on_crew, settings, write_decoder

import lipcast
from lipcast.core.request import GenerateOptions

FOUR_STEPS = {"fold_last_step": False}
BLOCKS = 5
"""More than a window of two, and a block after the new anchor has passed every stage."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "decoder.safetensors")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks: the number of threads decides the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def single(home: Path, decoder: Path) -> lipcast.Lipcast:
    return alone(decoder)


class Made:
    """A video and all that is known of it."""

    def __init__(self, model: lipcast.Lipcast, **inputs: Any) -> None:
        latents: list[torch.Tensor] = []
        with model.stream(prompt="calm", **{**SMALL, **inputs}) as session:
            session.on_latent = lambda _block, latent: latents.append(latent.clone())
            self.frames = np.concatenate([block.frames for block in session])
            self.past, self.report = session.past, session.report()
        self.latents = torch.cat(latents, dim=1)

    def assert_same(self, other: Made, tolerance: float) -> None:
        assert self.latents.shape == other.latents.shape
        largest = other.latents.abs().max()
        assert (self.latents - other.latents).abs().max() <= tolerance * largest
        assert self.frames.shape == other.frames.shape
        assert np.abs(self.frames.astype(int) - other.frames).max() <= (tolerance > 0)
        assert self.past is not None and other.past is not None
        assert self.past.next_block == other.past.next_block
        for mine, theirs in zip(self.past.blocks, other.past.blocks, strict=True):
            assert len(mine.inputs) == len(theirs.inputs) > 0
            for x, y in zip(mine.inputs, theirs.inputs, strict=True):
                assert (x - y).abs().max() <= tolerance * largest


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from sounds import EXAMPLES, write_syllables

    path = write_syllables(tmp_path_factory.mktemp("sound") / "voice.wav", BLOCKS * 0.48)
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
)


@pytest.mark.parametrize(("gpus", "layout", "options", "tolerance"), LAYOUTS)
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
    with on_crew(single, settings(decoder), asked, **gpus) as model:
        assert model.crew is not None and str(model.crew.plan.layout) == layout
        first = Made(model, **inputs, **options)
        first.assert_same(expected(**options), tolerance)
        second = Made(model, **inputs, **options, schedule="wavefront")
        second.assert_same(expected(**options), max(tolerance, 1e-5))
    ranks = first.report["ranks"]
    assert ranks[0]["rank"].startswith("stage 0")
    assert all(rank["seconds"]["compute_s"] + rank["seconds"]["decode_s"] > 0 for rank in ranks)
