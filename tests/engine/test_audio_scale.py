"""How strongly the voice moves the picture: the same in every schedule, segment, session and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.errors import UsageError
from lipcast.models.audio import CausalAudioEncoder
from planned import planned
from sounds import syllables

SMALL: dict[str, Any] = {"size": "64*64", "infer_frames": 16, "sample_steps": 3}
MORE = 1.4


@pytest.fixture
def inputs(portrait: Path, sound: Any) -> dict[str, Any]:
    return {"image": portrait, "audio": sound(3 * 0.48), "prompt": "calm", **SMALL}


def made(
    model: lipcast.Lipcast, **inputs: Any
) -> tuple[list[torch.Tensor], SessionSnapshot | None]:
    found: list[torch.Tensor] = []
    with model.stream(**inputs) as session:
        session.on_latent = lambda _, latent: found.append(latent.clone())
        for _ in session:
            pass
        return found, session.snapshot


def test_one_is_the_video_as_it_was(quick: lipcast.Lipcast, inputs: dict[str, Any]) -> None:
    plain, _ = made(quick, **inputs)
    one, _ = made(quick, audio_scale=1, **inputs)
    more, _ = made(quick, audio_scale=MORE, **inputs)
    assert len(plain) == 3 and all(map(torch.equal, plain, one))
    assert not any(map(torch.equal, plain, more))


def test_tokens_are_so_many_times_as_far_from_those_of_no_sound(quick: lipcast.Lipcast) -> None:
    """Of two characters each: what one says does not reach the tokens of the other."""
    dit = quick.bundle.dit
    encoder: CausalAudioEncoder = dit.casual_audio_encoder
    config = dit.config
    shape = (2, config.num_audio_layers, config.audio_dim, 12)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        absent = encoder(torch.zeros(1, *shape[1:]))
        given, scaled = encoder(features), encoder.scaled(features, 2.5)
        alone = encoder.scaled(features[1:], 2.5)
        assert all(map(torch.equal, given, encoder.scaled(features, 1.0)))
        for none, once, more in zip(absent, given, scaled, strict=True):
            assert (more - (2.5 * once - 1.5 * none)).abs().max() < 1e-4
        for whole, one in zip(scaled, alone, strict=True):
            assert (whole[1:] - one).abs().max() < 1e-4
        for none, zero in zip(absent, encoder.scaled(features, 0), strict=True):
            assert (none - zero).abs().max() < 1e-5


def test_schedules_and_streamed_memory_give_the_same_latents(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    expected, _ = made(quick, audio_scale=MORE, schedule="sequential", **inputs)
    wavefront, _ = made(quick, audio_scale=MORE, schedule="wavefront", **inputs)
    streamed, _ = made(
        planned(quick, offload_model=True, offload_kv_cache=True), audio_scale=MORE, **inputs
    )
    for found in (wavefront, streamed):
        assert all((x - y).abs().max() <= 1e-4 for x, y in zip(expected, found, strict=True))


def test_a_video_that_goes_on_is_the_whole_one(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    given = {**inputs, "audio_scale": MORE, "swap_reference": False}
    whole, _ = made(quick, **given)
    first, snapshot = made(quick, end_block=2, **given)
    rest, _ = made(quick, snapshot=snapshot, **given)
    assert len(first) == 2 and len(rest) == 1
    assert all((x - y).abs().max() <= 1e-5 for x, y in zip(whole, first + rest, strict=True))


def test_sound_that_is_pushed_gives_the_video_of_the_file(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    speech = syllables(3 * 0.48)
    given = {name: inputs[name] for name in inputs if name != "audio"}
    with quick.session(audio_scale=MORE, **given) as live:
        live.push(speech)
        live.finish()
        pushed = np.concatenate([block.frames for block in live])
    with quick.stream(audio_scale=MORE, **inputs) as session:
        whole = np.concatenate([block.frames for block in session])
    assert pushed.shape == whole.shape
    assert np.abs(pushed.astype(int) - whole.astype(int)).max() <= 1


@pytest.mark.slow
def test_two_processes_give_the_latents_of_one(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    given = {**inputs, "audio_scale": MORE, "num_clip": 2, "fold_last_step": False}
    with lipcast.load("tiny", device="cpu", precision="fp32", gpus=2) as ranks:
        spread, _ = made(ranks, **given)
    here, _ = made(quick, **given)
    assert len(here) == len(spread) > 1
    assert all((x - y).abs().max() < 1e-4 for x, y in zip(here, spread, strict=True))


@pytest.mark.parametrize("value", [-0.1, 3.1, float("nan"), float("inf"), True, "1.4", None])
def test_what_is_no_scale_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="audio_scale: expected a number from 0 to 3, got"):
        lipcast.GenerateOptions(audio_scale=value)
