"""Videos whose memory is planned: the same in any budget, and going on when memory runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import lipcast
from latents import watched
from lipcast.engine import session_builder
from lipcast.engine.backend import LocalBackend
from lipcast.engine.decode import FrameDecoder
from lipcast.errors import MemoryBudgetError
from lipcast.planning.search import least_vram
from planned import SIDE, SMALL, Faults, manager_of, planned
from sounds import EXAMPLES, write_wav

SCHEDULE = {"schedule": "sequential"}
KEEPING = ("kv_streamed", "weights_streamed")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sound = write_wav(tmp_path_factory.mktemp("sound") / "voice.wav", 2.3)
    return {"image": EXAMPLES / "portrait_0.png", "audio": sound, **SMALL, **SCHEDULE}


@pytest.fixture(scope="module")
def undisturbed(quick: lipcast.Lipcast, inputs: dict[str, Any]) -> np.ndarray:
    """Frames of the video that has all memory it wants."""
    return quick.generate(**inputs).frames


@pytest.fixture(scope="module")
def least(quick: lipcast.Lipcast) -> int:
    """The smallest budget in which a small video can be made."""
    model = planned(quick, kv_precision="fp32")
    options = lipcast.api.make_options({**SMALL, **SCHEDULE})
    plan = manager_of(model).plan(quick.spec(options, height=SIDE, width=SIDE).geometry, options)
    anywhere = replace(plan.request.constraints, speech_encoder=None)
    found = least_vram(replace(plan.request, constraints=anywhere))
    assert found is not None
    return found


def collect(model: lipcast.Lipcast, inputs: dict[str, Any]) -> tuple[np.ndarray, torch.Tensor, Any]:
    """(frames, latents, what the report says of memory)."""
    with model.stream(**inputs) as session:
        latents = watched(session)
        frames = np.concatenate([block.frames for block in session])
        return frames, torch.cat(latents, dim=1), session.report().get("memory")


def test_any_budget_gives_the_same_video(
    quick: lipcast.Lipcast, inputs: dict[str, Any], least: int
) -> None:
    frames, latents, _ = collect(quick, inputs)
    seen = set()
    for factor in (1.0, 1.05, 1.2, 2.0):
        model = planned(quick, int(least * factor), kv_precision="fp32")
        made, made_latents, memory = collect(model, inputs)
        assert torch.equal(made_latents, latents)
        if memory["plan"]["decoder_tiles"] == [1, 1]:
            assert np.array_equal(made, frames)
        assert memory["measured"]["vram_peak_bytes"] <= least * factor
        assert not memory["fallbacks"]["taken"]
        seen.add((tuple(memory["plan"]["layers"]), tuple(memory["plan"]["ring_layers"])))
    assert len(seen) >= 3
    with pytest.raises(MemoryBudgetError, match="expected at least"):
        planned(quick, least - 1, kv_precision="fp32")


def test_predicted_parts_are_what_is_taken(
    quick: lipcast.Lipcast, inputs: dict[str, Any], least: int
) -> None:
    with planned(quick, int(least * 1.3)).stream(**inputs) as session:
        next(session)
        memory = session.report()["memory"]
    predicted = memory["plan"]["vram"]["generate"]
    taken = memory["measured"]["vram_parts_bytes"]
    assert taken == {part: predicted[part] for part in taken}
    assert {"weights of layers", "slots for streamed layers", "sink"} <= set(taken)
    on_host = memory["plan"]["ram"]["parts"]
    assert memory["measured"]["ram_parts_bytes"] == {
        part: on_host[part] for part in memory["measured"]["ram_parts_bytes"]
    }


@pytest.mark.parametrize("where", ["ensure_resident", "speech", "start", "decode", "fetch"])
def test_fallbacks_that_keep_the_picture_lose_nothing(
    quick: lipcast.Lipcast, inputs: dict[str, Any], undisturbed: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, where: str,
) -> None:  # fmt: skip
    """Mid-block and mid-copy: every fallback is reached, and the video goes on as if nothing had been."""
    model = planned(quick, fallback=", ".join(KEEPING))
    session = model.stream(**inputs)
    copier = manager_of(model).device_context.copier
    owner, method, fail_at = {
        "ensure_resident": (model.bundle.dit, "ensure_resident", {30, 70}),
        "speech": (session._timeline, "features", {1, 3}),
        "start": (session._executor, "start", {1, 3}),
        "decode": (session._decoder._vae, "decode_chunk", {1, 4}),  # type: ignore[attr-defined]
        "fetch": (copier, "fetch", {120}),
    }[where]
    faults = Faults(fail_at)
    if where == "fetch":
        # Copies begin with the first fallback.
        first = Faults({40})
        monkeypatch.setattr(
            model.bundle.dit, "ensure_resident", first.wrap(model.bundle.dit.ensure_resident)
        )
    monkeypatch.setattr(owner, method, faults.wrap(getattr(owner, method)))
    frames = np.concatenate([block.frames for block in session])
    assert np.array_equal(frames, undisturbed)
    taken = session.report()["memory"]["fallbacks"]["taken"]
    assert [fallback["fallback"] for fallback in taken] == list(KEEPING)
    assert all(fallback["used_after_bytes"] < fallback["used_before_bytes"] for fallback in taken)
    assert all("injected" in fallback["reason"] for fallback in taken)


@pytest.mark.parametrize("decoder", ["quick", pytest.param("tiny", marks=pytest.mark.slow)])
def test_rings_in_8_bits_and_tiles_change_little(
    decoder: str,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    whole = request.getfixturevalue(decoder)
    inputs = {**inputs, "size": "160*160", "num_clip": 2}
    expected = whole.generate(**inputs).frames
    model = planned(whole, fallback="kv_fp8, tiling")
    session = model.stream(**inputs)
    faults = Faults({40, 70})
    monkeypatch.setattr(
        model.bundle.dit, "ensure_resident", faults.wrap(model.bundle.dit.ensure_resident)
    )
    frames = np.concatenate([block.frames for block in session])
    names = [r["fallback"] for r in session.report()["memory"]["fallbacks"]["taken"]]
    assert names == ["kv_fp8", "tiling"] and frames.shape == expected.shape
    error = frames.astype(float) - expected
    psnr = 10 * np.log10(255**2 / np.mean(error**2))
    assert 25 < psnr < 99


def test_without_a_fallback_left_the_error_says_what_was_tried(
    quick: lipcast.Lipcast, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = planned(quick, fallback="kv_streamed")
    session = model.stream(**inputs)
    faults = Faults({60, 110})
    monkeypatch.setattr(
        model.bundle.dit, "ensure_resident", faults.wrap(model.bundle.dit.ensure_resident)
    )
    made = []
    with pytest.raises(MemoryBudgetError, match=r"block \d+ .*tried: kv_streamed.*allow"):
        made += list(session)
    assert isinstance(made, list)


@pytest.mark.parametrize("fallback", ["infer_frames=12", "sample_steps=2", "size=64*64"])
def test_a_changed_video_goes_on_from_its_last_finished_block(
    quick: lipcast.Lipcast, inputs: dict[str, Any], undisturbed: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, fallback: str,
) -> None:  # fmt: skip
    expected = undisturbed
    if fallback.startswith("size"):
        inputs = {**inputs, "size": "128*128"}
        expected = quick.generate(**inputs).frames
    model = planned(quick, fallback=fallback)
    session = model.stream(**inputs)
    faults = Faults({100})
    monkeypatch.setattr(
        model.bundle.dit, "ensure_resident", faults.wrap(model.bundle.dit.ensure_resident)
    )
    frames, done_before = [], None
    for block in session:
        frames.append(block.frames)
        taken = session.report()["memory"]["fallbacks"]["taken"]
        done_before = taken[0]["block"] if taken and done_before is None else done_before
    made = np.concatenate(frames)
    assert made.shape == expected.shape
    assert done_before is not None and 1 <= done_before < len(frames)
    seam = 12 * done_before
    assert np.array_equal(made[:seam], expected[:seam])
    assert not np.array_equal(made[seam:], expected[seam:])
    assert made[seam:].std() > 5
    steps = np.abs(np.diff(made.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert steps[seam - 1] < 6 * np.median(steps) + 10, "the picture jumps at the seam"


def test_memory_that_runs_out_before_the_first_block(
    quick: lipcast.Lipcast, inputs: dict[str, Any], undisturbed: np.ndarray
) -> None:
    """The rings find less than was planned: a fallback is taken before anything is made."""
    model = planned(quick)
    vram = manager_of(model).device_context.vram
    vram.budget_bytes = vram.used_bytes + 2_000_000
    session = model.stream(**inputs)
    frames = np.concatenate([block.frames for block in session])
    assert np.array_equal(frames, undisturbed)
    taken = session.report()["memory"]["fallbacks"]["taken"]
    assert taken and {fallback["block"] for fallback in taken} == {0}
    assert torch.is_inference_mode_enabled() is False


def test_a_shorter_window_from_the_start_keeps_the_length(
    quick: lipcast.Lipcast, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length is counted in the clips that were asked for, not in those that memory has room for."""
    model = planned(quick, fallback="infer_frames=12")
    vram = manager_of(model).device_context.vram
    monkeypatch.setattr(vram, "allocate", Faults({0}).wrap(vram.allocate))
    with model.stream(**{**inputs, "num_clip": 2}) as session:
        assert session.spec.infer_frames == 12
        assert sum(len(block.frames) for block in session) == 2 * SMALL["infer_frames"]
        taken = session.report()["memory"]["fallbacks"]["taken"]
    assert [(found["fallback"], found["block"]) for found in taken] == [("infer_frames=12", 0)]


def test_all_sessions_of_a_device_decode_on_one_stream(
    quick: lipcast.Lipcast, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = planned(quick), []
    manager = manager_of(model)
    stream = object()
    manager.device_context = replace(manager.device_context, decode_stream=stream)
    assert isinstance(model.backend, LocalBackend)
    model.backend.device_context = manager.device_context
    decoder = FrameDecoder

    def making(*arguments: Any, stream: Any, **more: Any) -> Any:
        given.append(stream)
        return decoder(*arguments, **more)

    monkeypatch.setattr(session_builder, "FrameDecoder", making)
    for _ in range(2):
        model.stream(**inputs).close()
    assert given == [stream, stream]
