"""Several sessions in one pass of the transformer: the latents of each are those it would have alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from latents import watched
from lipcast.engine.session import Session
from lipcast.errors import SessionFailedError
from planned import SMALL, planned

Sound = Callable[[float], Path]


def run(model: lipcast.Lipcast, sessions: Sequence[Session]) -> None:
    while model.tick(sessions):
        pass


REQUESTS: tuple[dict[str, Any], ...] = (
    {"seed": 1},
    {"seed": 2, "schedule": "wavefront"},
    {"seed": 3, "sample_steps": 3},
    {"seed": 4, "size": "128*128"},
)


@pytest.mark.parametrize("memory", [None, {"offload_model": True, "offload_kv_cache": True}])
def test_latents_are_those_of_each_session_alone(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound, memory: dict[str, Any] | None
) -> None:
    model = quick if memory is None else planned(quick, **memory)
    requests = [{**SMALL, **more} for more in REQUESTS]
    sounds = [sound(0.4 + 0.3 * number) for number in range(len(requests))]
    expected = []
    for request, audio in zip(requests, sounds, strict=True):
        with model.stream(image=portrait, audio=audio, **request) as alone:
            latents = watched(alone)
            expected.append((latents, [block.frames for block in alone]))
    sessions = [
        model.stream(image=portrait, audio=audio, **request)
        for request, audio in zip(requests, sounds, strict=True)
    ]
    together = [watched(session) for session in sessions]
    passes: list[int] = []
    forward = model.bundle.dit.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model.bundle.dit, "forward", lambda lanes: passes.append(len(lanes)) or forward(lanes)
        )
        run(model, sessions)
    assert max(passes) >= 3, "lanes of several sessions share a pass"
    for session, latents, (alone_latents, frames) in zip(sessions, together, expected, strict=True):
        assert len(latents) == len(alone_latents)
        assert all(map(torch.equal, latents, alone_latents))
        assert np.array_equal(np.concatenate([b.frames for b in session.take()]),
                              np.concatenate(frames))  # fmt: skip
        session.close()


def test_one_failure_leaves_the_others_untouched(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    expected = [
        quick.generate(image=portrait, audio=sound(1.0), seed=seed, **SMALL).frames
        for seed in (1, 2)
    ]
    sessions = [
        quick.stream(image=portrait, audio=sound(1.0), seed=seed, **SMALL) for seed in (1, 9, 2)
    ]
    quick.tick(sessions)

    def broken(*_: Any) -> Any:
        raise ValueError("a defect of one session")

    sessions[1]._executor.lanes = broken  # type: ignore[attr-defined]
    run(quick, sessions)
    with pytest.raises(SessionFailedError, match="a defect of one session"):
        list(sessions[1].take())
    for session, frames in zip((sessions[0], sessions[2]), expected, strict=True):
        assert np.array_equal(np.concatenate([b.frames for b in session.take()]), frames)


def test_a_session_without_sound_waits_and_the_others_go_on(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    with (
        quick.session(image=portrait, **SMALL) as live,
        quick.stream(image=portrait, audio=sound(0.5), **SMALL) as whole,
    ):
        while quick.tick((live, whole)):
            pass
        assert sum(len(block.frames) for block in whole.take()) == 13
        assert list(live.take()) == []
        live.push(np.zeros(16_000, np.float32))
        live.finish()
        while quick.tick((live, whole)):
            pass
        assert sum(len(block.frames) for block in live.take()) == 25
