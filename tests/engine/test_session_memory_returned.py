"""Sessions that are closed, fail or are dropped give all their memory back, and the budget is shared."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from lipcast.engine.retry import retry_on_oom
from lipcast.errors import AdmissionError, CancelledError, MemoryBudgetError, SessionFailedError
from lipcast.memory.arena import Arena
from planned import SMALL, Faults, manager_of, planned

Sound = Callable[[float], Path]


def held(model: lipcast.Lipcast) -> dict[str, int]:
    """Bytes by part of both arenas."""
    context = manager_of(model).device_context
    return {f"{arena.name}: {part}": n for arena in (context.vram, context.ram)
            for part, n in arena.parts.items()}  # fmt: skip


@pytest.fixture
def streaming(quick: lipcast.Lipcast) -> lipcast.Lipcast:
    """The embedded model with its weights and KV caches in host memory."""
    return planned(quick, offload_model=True, offload_kv_cache=True)


def test_a_closed_session_gives_everything_back(
    streaming: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    loaded = held(streaming)
    for _ in range(3):
        with streaming.stream(image=portrait, audio=sound(0.5), **SMALL) as session:
            assert len(list(session)) == 2
            during = held(streaming)
            assert sum(during.values()) > sum(loaded.values())
        assert held(streaming) == loaded
        assert manager_of(streaming).num_sessions == 0


def test_a_dropped_session_gives_everything_back(
    streaming: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    loaded = held(streaming)
    session = streaming.stream(image=portrait, audio=sound(0.5), **SMALL)
    next(session)
    assert held(streaming) != loaded
    del session
    gc.collect()
    assert held(streaming) == loaded and manager_of(streaming).num_sessions == 0


def test_a_failed_session_gives_everything_back_and_does_not_go_on(
    streaming: lipcast.Lipcast, portrait: Path, sound: Sound, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = held(streaming)
    session = streaming.stream(image=portrait, audio=sound(1.5), **SMALL)
    first = next(session)
    dit = streaming.bundle.dit

    def broken(*_: Any) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a defect"):
        patch.setattr(dit, "forward", broken)
        list(session)
    assert held(streaming) == loaded
    with pytest.raises(SessionFailedError, match=r"a defect.*open a new one"):
        next(session)
    again = next(streaming.stream(image=portrait, audio=sound(1.5), **SMALL))
    assert np.array_equal(first.frames, again.frames)


@pytest.mark.parametrize("number", range(0, 200, 23))
def test_opening_that_fails_half_way_leaks_nothing(
    streaming: lipcast.Lipcast, portrait: Path, sound: Sound, monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:  # fmt: skip
    loaded, faults = held(streaming), Faults({number})
    manager = manager_of(streaming)
    monkeypatch.setattr(manager, "fallbacks", lambda plan: ())
    monkeypatch.setattr(Arena, "allocate", faults.wrap(Arena.allocate))
    try:
        with streaming.stream(image=portrait, audio=sound(0.5), **SMALL) as session:
            assert faults.num_calls <= number
            next(session)
    except MemoryBudgetError as error:
        assert "injected" in str(error) and "no fallback left (tried: none)" in str(error)
    monkeypatch.undo()
    assert held(streaming) == loaded and manager.num_sessions == 0


def test_a_session_that_fits_only_alone_is_refused_with_what_must_close(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    model = planned(quick, offload_model=True)
    alone = manager_of(model).plan(
        quick.spec(lipcast.api.make_options(SMALL), height=64, width=64).geometry,
        lipcast.api.make_options(SMALL),
    )
    tight = planned(
        quick, vram_bytes=alone.vram_bytes + 1000, offload_model=True, kv_precision="bf16"
    )
    first = tight.stream(image=portrait, audio=sound(0.5), **SMALL)
    with pytest.raises(AdmissionError, match=r"fits once 1 of them is closed"):
        tight.stream(image=portrait, audio=sound(0.5), **SMALL)
    frames = [block.frames for block in first]
    first.close()
    with tight.stream(image=portrait, audio=sound(0.5), **SMALL) as second:
        assert np.array_equal(np.concatenate(frames), np.concatenate([b.frames for b in second]))


def test_two_sessions_share_one_budget(
    streaming: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    manager = manager_of(streaming)
    one = streaming.stream(image=portrait, audio=sound(1.0), seed=1, **SMALL)
    two = streaming.stream(image=portrait, audio=sound(1.0), seed=2, **SMALL)
    assert manager.num_sessions == 2
    interleaved = [(next(one).frames, next(two).frames) for _ in range(2)]
    one.close()
    rest = [block.frames for block in two]
    two.close()
    for seed, got in ((1, [a for a, _ in interleaved]), (2, [b for _, b in interleaved] + rest)):
        with streaming.stream(image=portrait, audio=sound(1.0), seed=seed, **SMALL) as alone:
            expected = [block.frames for block in alone]
        assert np.array_equal(np.concatenate(got), np.concatenate(expected[: len(got)]))


def test_recovery_runs_after_the_tensors_of_the_failed_call_are_let_go() -> None:
    import weakref

    alive: list[bool] = []
    seen: list[weakref.ref[torch.Tensor]] = []

    def call() -> int:
        if seen:
            return 7
        activations = torch.empty(8)
        seen.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("injected\nsecond line")

    def recover(reason: str, block: int) -> None:
        assert (reason, block) == ("injected", 3)
        alive.append(seen[0]() is not None)

    assert retry_on_oom(call, recover, 3) == 7
    assert alive == [False]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=lambda error: type(error).__name__ + str(error)[-12:],
)
def test_every_kind_of_out_of_memory_reaches_the_ladder(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    expected = quick.generate(image=portrait, audio=sound(1.0), **SMALL).frames
    model = planned(quick)
    session = model.stream(image=portrait, audio=sound(1.0), **SMALL)
    forward, calls = model.bundle.dit.forward, [0]

    def failing(lanes: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise error
        return forward(lanes)

    monkeypatch.setattr(model.bundle.dit, "forward", failing)
    frames = np.concatenate([block.frames for block in session])
    taken = session.report()["memory"]["fallbacks"]["taken"]
    session.close()
    assert len(taken) == 1 and taken[0]["reason"] == str(error).splitlines()[0]
    assert np.array_equal(frames, expected)


def test_a_block_of_frames_keeps_no_more_sound_alive_than_its_own(
    quick: lipcast.Lipcast, portrait: Path, sound: Sound
) -> None:
    with quick.stream(image=portrait, audio=sound(2.0), **SMALL) as session:
        for block in session:
            owner = block.audio if block.audio.base is None else block.audio.base
            assert owner.nbytes == block.audio.nbytes


def test_a_closed_session_says_so(quick: lipcast.Lipcast, portrait: Path, sound: Sound) -> None:
    session = quick.stream(image=portrait, audio=sound(0.5), **SMALL)
    session.close()
    session.close()
    with pytest.raises(CancelledError, match="closed; open a new one"):
        next(session)
