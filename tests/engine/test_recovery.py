"""A session whose memory runs out makes room and goes on: the same video, no frame missing or repeated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lipcast
from lipcast.config.schedule import Order, ticks
from lipcast.engine.session import ReplanRequired, Session
from lipcast.engine.snapshot import BlockSnapshot, SnapshotRecorder
from planned import planned

OPTIONS: dict[str, Any] = {"size": "64*64", "infer_frames": 16}


class Faults:
    """Lets chosen calls run out of memory, and counts who asked for room."""

    def __init__(self, fail_at: set[int]) -> None:
        self._fail_at, self._num_calls = fail_at, 0
        self.blocks: list[int] = []

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*args: Any) -> Any:
            number, self._num_calls = self._num_calls, self._num_calls + 1
            if number in self._fail_at:
                raise torch.OutOfMemoryError(f"injected at call {number}")
            return call(*args)

        return calling

    def recover(self, reason: str, block: int) -> None:
        assert "injected" in reason
        self.blocks.append(block)


def frames_of(session: Any) -> np.ndarray:
    return np.concatenate([block.frames for block in session])


@pytest.mark.parametrize("schedule", ["sequential", "wavefront"])
@pytest.mark.parametrize("where", ["start", "ensure_resident", "decode"])
def test_any_call_may_fail_and_is_made_again(
    quick: lipcast.Lipcast,
    portrait: Path,
    sound: Any,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    where: str,
) -> None:
    inputs = {"image": portrait, "audio": sound(2.0), "schedule": schedule, **OPTIONS}
    expected = frames_of(quick.stream(**inputs))
    session = quick.stream(**inputs)
    count = {"start": 5, "ensure_resident": 60, "decode": 5}[where]
    faults = Faults(set(range(0, count, 2 if count == 5 else 13)))
    session._recovery = faults.recover
    owner = {
        "start": session._executor, "ensure_resident": quick.bundle.dit, "decode": session._decoder._vae,  # type: ignore[attr-defined]
    }[where]  # fmt: skip
    method = {"decode": "decode_chunk"}.get(where, where)
    monkeypatch.setattr(owner, method, faults.wrap(getattr(owner, method)))
    assert np.array_equal(frames_of(session), expected)
    assert len(faults.blocks) >= 3 and faults.blocks == sorted(faults.blocks)


@pytest.mark.parametrize("ticked", [False, True])
def test_a_block_that_cannot_start_starts_with_other_settings(
    quick: lipcast.Lipcast, portrait: Path, sound: Any, *, ticked: bool
) -> None:
    """Nothing is in flight then, and the video must not end there."""
    model = planned(quick, offload_kv_cache=True)

    def frames(session: Session) -> np.ndarray:
        while ticked and model.tick([session]):
            pass
        return frames_of(session.take() if ticked else session)

    inputs = {"image": portrait, "audio": sound(1.92), **OPTIONS}
    with model.stream(**inputs) as session:
        expected = frames(session)
    with model.stream(**inputs) as session:
        replans: list[int] = []
        failing, ladder = session._executor, session._recovery

        def start(block: int, *given: Any) -> None:
            if block == 2:
                raise torch.OutOfMemoryError("injected")
            type(failing).start(failing, block, *given)

        def replan(_reason: str, block: int) -> None:
            replans.append(block)
            raise ReplanRequired(partial(ladder._restart, ladder.plan))

        failing.start, session._recovery = start, replan
        found = frames(session)
    assert replans == [2]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_without_recovery_the_error_ends_the_session(
    quick: lipcast.Lipcast, portrait: Path, sound: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = quick.stream(image=portrait, audio=sound(1.0), **OPTIONS)
    monkeypatch.setattr(
        quick.bundle.dit, "ensure_resident", Faults({7}).wrap(quick.bundle.dit.ensure_resident)
    )
    with pytest.raises(torch.OutOfMemoryError):
        frames_of(session)


@given(st.integers(1, 4), st.integers(0, 9), st.booleans(), st.sampled_from((None, 2, 5)))
def test_a_later_start_takes_what_lies_before_as_finished(
    steps: int, first: int, wavefront: bool, swap_block: int | None
) -> None:
    order, lanes = Order(steps, swap_block), steps if wavefront else 1
    endless = ticks(order, max_lanes=lanes, first_block=first)
    units = [unit for tick in islice(endless, 40) for unit in tick]
    expected = {(b, s) for b in range(first, first + 4) for s in range(steps)}
    assert expected <= set(units) and min(units).block == first


def test_a_recorder_keeps_a_window() -> None:
    recorder = SnapshotRecorder(window=8, latents_per_block=3)
    assert recorder.snapshot() is None
    for number in range(9):
        latent, features = torch.full((1, 3, 1, 1), number), torch.full((1, 1, 12), number)
        recorder.add(BlockSnapshot(latent, features, (latent,)))
    snapshot = recorder.snapshot()
    assert snapshot is not None
    assert (snapshot.next_block, snapshot.first_block, len(snapshot.blocks)) == (9, 3, 6)
    assert snapshot.first_C1HW.item() == 0 and snapshot.blocks[0].latent_CFHW[0, 0].item() == 3
    other = SnapshotRecorder(window=3, latents_per_block=3)
    other.resume(snapshot)
    again = other.snapshot()  # no less than the decoder looks back
    assert again is not None and (again.next_block, again.first_block) == (9, 4)
