"""Prompts over time: each begins at a block border, in every schedule, segment and layout alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from latents import watched
from lipcast.engine.session import ReplanRequired
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.errors import LipcastError
from lipcast.models.dit import DiT
from planned import planned

SMALL: dict[str, Any] = {"size": "64*64", "infer_frames": 16}
THREE = lipcast.Direction(prompts=[(0.5, "laughing"), (1.4, "a sad man")])
"""From the blocks 1 and 3 on; the reference changes before block 2."""


def latents_of(
    model: lipcast.Lipcast, prompt: str = "calm", end: int | None = None, **inputs: Any
) -> tuple[list[torch.Tensor], SessionSnapshot]:
    with model.stream(prompt=prompt, end_block=end, **{**SMALL, **inputs}) as session:
        found = watched(session)
        for _ in session:
            pass
        assert session.snapshot is not None
        return found, session.snapshot


@pytest.fixture
def inputs(portrait: Path, sound: Any) -> dict[str, Any]:
    return {"image": portrait, "audio": sound(4 * 0.48)}


def test_a_prompt_holds_from_its_block_on_and_not_before(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    plain, _ = latents_of(quick, **inputs)
    later, _ = latents_of(quick, direction=THREE, **inputs)
    earlier, _ = latents_of(
        quick, direction=lipcast.Direction(prompts=[(0.5, "laughing")]), **inputs
    )
    at_first, _ = latents_of(
        quick, direction=lipcast.Direction(prompts=[(0, "calm")]), prompt="", **inputs
    )
    assert all(map(torch.equal, plain, at_first))
    assert torch.equal(plain[0], later[0]) and not torch.equal(plain[1], later[1])
    assert all(map(torch.equal, earlier[:3], later[:3])) and not torch.equal(earlier[3], later[3])


def test_what_a_block_attends_to_is_the_text_and_the_sink_of_its_prompt(
    quick: lipcast.Lipcast, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent of how it comes about: the keys of every lane and prefill are those of the right text."""
    dit = quick.bundle.dit
    names = {"calm": 0, "laughing": 1, "a sad man": 2}
    keys = {n: dit.encode_text(quick.bundle.encode_prompt(text))[0][0] for text, n in names.items()}
    seen: list[Any] = []

    def number(text: Any) -> int:
        return next(n for n, key in keys.items() if torch.equal(key, text[0][0]))

    real_forward, real_prefill = DiT.forward, DiT.prefill

    def forward(self: DiT, lanes: Any) -> Any:
        seen.extend(
            (lane.conditions.first_frame // 3, number(lane.conditions.text)) for lane in lanes
        )
        return real_forward(self, lanes)

    def prefill(self: DiT, ref: Any, motion: Any, text: Any, sink: Any) -> None:
        seen.append(("sink", number(text)))
        real_prefill(self, ref, motion, text, sink)

    monkeypatch.setattr(DiT, "forward", forward)
    monkeypatch.setattr(DiT, "prefill", prefill)
    for schedule in ("sequential", "wavefront"):
        seen.clear()
        latents_of(quick, direction=THREE, schedule=schedule, **inputs)
        sink = -1
        for what, text in seen:
            sink = text if what == "sink" else sink
            if what != "sink":
                assert text == sink == {0: 0, 1: 1, 2: 1, 3: 2}[what]


def test_every_schedule_gives_the_same_latents(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    one, _ = latents_of(quick, direction=THREE, schedule="sequential", **inputs)
    other, _ = latents_of(quick, direction=THREE, schedule="wavefront", **inputs)
    assert all((x - y).abs().max() <= 1e-4 for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("border", [1, 2, 3])
def test_an_interruption_changes_nothing(
    quick: lipcast.Lipcast, inputs: dict[str, Any], border: int
) -> None:
    """Before, at and behind a new prompt: what goes on from a snapshot is what follows without one.

    The rings are refilled from the snapshot with each block's own prompt; all blocks are in it here, so that
    they are the very same, but for the reference, which is the newest from the beginning.
    """
    whole, _ = latents_of(quick, direction=THREE, swap_reference=False, **inputs)
    given = {"direction": THREE, "swap_reference": False, **inputs}
    first, snapshot = latents_of(quick, end=border, **given)
    rest, _ = latents_of(quick, snapshot=snapshot, **given)
    assert len(first) == border
    for x, y in zip(whole, first + rest, strict=True):
        assert (x - y).abs().max() <= 1e-5


@pytest.mark.parametrize("call", [1, 5, 9])
def test_a_replay_that_ran_out_of_memory_is_made_again_with_every_prompt(
    quick: lipcast.Lipcast, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    given = {"direction": THREE, "swap_reference": False, **SMALL, **inputs}
    _, snapshot = latents_of(quick, end=3, **given)
    expected, _ = latents_of(quick, snapshot=snapshot, **given)
    calls, forward = iter(range(1000)), DiT.forward

    def failing(self: DiT, lanes: Any) -> Any:
        if next(calls) == call:
            raise torch.OutOfMemoryError("injected")
        return forward(self, lanes)

    monkeypatch.setattr(DiT, "forward", failing)
    with quick.stream(prompt="calm", snapshot=snapshot, **given) as session:
        session._recovery = lambda _reason, _block: None
        found = watched(session)
        assert len(list(session)) == 1
    assert next(calls) > call + 1 and all(map(torch.equal, expected, found))


def test_a_prompt_that_was_set_lasts_when_memory_is_planned_anew(
    quick: lipcast.Lipcast, inputs: dict[str, Any]
) -> None:
    """It replaces the one that holds, until the next one of the direction begins."""
    given = {"direction": THREE, "swap_reference": False, **SMALL, **inputs}

    def made(*, fails: bool) -> list[torch.Tensor]:
        with planned(quick, offload_kv_cache=True).stream(prompt="calm", **given) as session:
            ladder = session._recovery
            found = watched(session)
            next(session)
            session.set_context(quick.bundle.encode_prompt("angry"))
            if fails:
                start, failures = session._executor.start, [torch.OutOfMemoryError("injected")]

                def failing(*args: Any, **more: Any) -> None:
                    if failures:
                        raise failures.pop()
                    start(*args, **more)

                def anew(_reason: str, _block: int) -> None:
                    raise ReplanRequired(partial(ladder._restart, ladder.plan))

                session._executor.start, session._recovery = failing, anew
            for _ in session:
                pass
            assert not fails or not failures
        return found

    expected, found = made(fails=False), made(fails=True)
    plain, _ = latents_of(quick, direction=THREE, swap_reference=False, **inputs)
    assert len(found) == 4 and not torch.equal(expected[2], plain[2])
    assert all((x - y).abs().max() < 1e-4 for x, y in zip(expected, found, strict=True))


@pytest.mark.slow
def test_the_switch_is_no_jump(tiny: lipcast.Lipcast, inputs: dict[str, Any]) -> None:
    video = tiny.generate(prompt="calm", direction=THREE, **{**SMALL, **inputs})
    change = np.abs(np.diff(video.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert change[[11, 35]].max() <= 2 * np.delete(change, [11, 23, 35]).max()


@pytest.mark.parametrize(
    ("prompts", "prompt", "message"),
    [
        ([(1, "a"), (1.1, "b")], "", "begin with the same block"),
        ([(0, "a")], "calm", "leave one of them out"),
        ([(2, "a"), (1, "b")], "", "is not later than"),
        ([(float("nan"), "a")], "", r"expected a pair \(second, prompt\)"),
        (["calm"], "", r"expected a pair \(second, prompt\)"),
    ],
)
def test_prompts_that_cannot_be_followed_are_refused(
    quick: lipcast.Lipcast, inputs: dict[str, Any], prompts: Any, prompt: str, message: str
) -> None:
    with pytest.raises(LipcastError, match=message):
        quick.stream(direction=lipcast.Direction(prompts=prompts), prompt=prompt, **SMALL, **inputs)
