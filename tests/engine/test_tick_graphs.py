"""Recorded ticks give the latents of ticks that are launched kernel by kernel, bit for bit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import RecordedGraphs
from torch import Tensor

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import VAEConfig
from lipcast.config.schedule import ticks
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.engine.backend import LocalBackend
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.executor import LaneExecutor
from lipcast.engine.tick_graphs import TickGraphs
from lipcast.memory.graphs import GraphBackend, RunAgain
from lipcast.memory.session_memory import SessionPlan
from lipcast.models.dit import DiT
from lipcast.planning.graphs import num_graphs
from lipcast.planning.hardware import CPU
from planned import Faults, manager_of, planned
from schedules import take_blocks

sys.path.insert(0, str(Path(__file__).parents[1] / "memory"))
from small_dit import SMALL, small_dit

Hooks = Mapping[int, Callable[[LaneExecutor], None]]
"""What happens before the tick of a number."""
RESIDENT = SessionPlan.resident(SMALL.num_layers)
STREAMED = SessionPlan(("pinned",) * SMALL.num_layers, sink_streamed=True)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec_of(**options: Any) -> VideoSpec:
    given = {"size": "64*64", "infer_frames": 12, "sample_steps": 3, **options}
    return video_spec(GenerateOptions(**given), SMALL, VAEConfig(), height=64, width=64)


def executor_of(spec: VideoSpec, graphs: TickGraphs | None) -> LaneExecutor:
    height, width = spec.geometry.latent_height, spec.geometry.latent_width
    ref, motion = noise(1, 16, 1, height, width), noise(2, 16, 19, height, width)
    anchor = ReferenceLatents(ref, motion, motion)
    return LaneExecutor(small_dit(), spec, anchor, prompt(3), graphs=graphs)


def prompt(seed: int) -> Tensor:
    return noise(seed, 4, SMALL.text_dim)


def graphs_with(backend: GraphBackend, **options: Any) -> TickGraphs:
    given: dict[str, Any] = {"weights_version": lambda: 0, **options}
    return TickGraphs(small_dit(), backend, **given)


def latents(
    spec: VideoSpec, num_blocks: int, graphs: TickGraphs | None = None, hooks: Hooks | None = None
) -> Tensor:
    """Clean latents of a video's first blocks."""
    executor, found = executor_of(spec, graphs), []
    schedule = ticks(spec.order, max_lanes=spec.max_lanes)
    for number, tick in enumerate(take_blocks(schedule, num_blocks, spec.order.num_steps)):
        if hooks is not None and number in hooks:
            hooks[number](executor)
        for unit in tick:
            if unit.step == 0:
                pose = noise(200 + unit.block, 16, 3, 8, 8) if spec.options.pose else None
                executor.start(unit.block, noise(100 + unit.block, 2, 16, 12), pose_CFHW=pose)
        found += [latent.clone() for _, latent in executor.run(tick)]
    executor.release()
    return torch.cat(found, dim=1)


VIDEOS: dict[str, dict[str, Any]] = {
    "one place in the ring": {},
    "four places": {"infer_frames": 48},
    "writes that wrap": {"infer_frames": 32},
    "sets of inputs in turn": {"schedule": "wavefront"},
    "sets and places": {"schedule": "wavefront", "infer_frames": 48, "sample_steps": 4},
    "reference at a fixed distance": {"cond_distance": 4},
    "a voice that moves more": {"audio_scale": 1.4},
    "no new reference": {"swap_reference": False},
    "a pose": {"pose": True},
    "poses in turn": {"pose": True, "schedule": "wavefront"},
}


@pytest.mark.parametrize("options", VIDEOS.values(), ids=list(VIDEOS))
def test_latents_are_those_of_eager_ticks(options: dict[str, Any]) -> None:
    """Over more blocks than the ring has places, and across the new reference after the first clip."""
    spec, backend = spec_of(**options), RecordedGraphs()
    steps = spec.order.num_steps
    expected_graphs = num_graphs(
        spec.geometry, num_lanes=spec.max_lanes, ticks_per_block=steps // spec.max_lanes
    )
    num_blocks = 4 + 3 * expected_graphs // (steps // spec.max_lanes)
    graphs = graphs_with(backend)
    assert torch.equal(latents(spec, num_blocks, graphs), latents(spec, num_blocks))
    # The last ticks of a wavefront have fewer lanes, and so have those before a new reference.
    assert expected_graphs <= backend.num_recorded < expected_graphs + spec.max_lanes
    assert backend.num_released == backend.num_recorded
    assert graphs.num_replayed > expected_graphs and graphs.num_recorded == 0


def test_the_twin_runs_the_work_again() -> None:
    spec, graphs = spec_of(), graphs_with(RunAgain())
    assert torch.equal(latents(spec, 6, graphs), latents(spec, 6)) and graphs.num_replayed


def test_the_prompt_changes_in_the_middle() -> None:
    hooks = {
        tick: lambda run, seed=seed: run.set_context_from(run.next_block, prompt(seed))
        for tick, seed in ((9, 5), (17, 6))
    }
    for spec, blocks in ((spec_of(), 11), (spec_of(schedule="wavefront"), 14)):
        backend = RecordedGraphs()
        found = latents(spec, blocks, graphs_with(backend), hooks)
        assert torch.equal(found, latents(spec, blocks, None, hooks))
        assert not torch.equal(found, latents(spec, blocks))
        assert backend.num_recorded > 2


def test_sessions_in_turn_have_their_own() -> None:
    """Two executors of one model, tick by tick in turn."""
    specs = spec_of(seed=1), spec_of(seed=2)
    backends = RecordedGraphs(), RecordedGraphs()
    runs = [executor_of(spec, graphs_with(b)) for spec, b in zip(specs, backends, strict=True)]
    found: list[list[Tensor]] = [[], []]
    for tick in take_blocks(ticks(specs[0].order, max_lanes=1), 7, specs[0].order.num_steps):
        for run, own in zip(runs, found, strict=True):
            if tick[0].step == 0:
                run.start(tick[0].block, noise(100 + tick[0].block, 2, 16, 12))
            own += [latent.clone() for _, latent in run.run(tick)]
    for spec, own in zip(specs, found, strict=True):
        assert torch.equal(torch.cat(own, dim=1), latents(spec, 7))
    runs[0].release()
    assert not backends[0].recordings and backends[1].recordings


def test_what_cannot_be_recorded_is_launched_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """Said once; and what was recorded before is given back."""
    backend = RecordedGraphs()
    graphs = graphs_with(backend)

    def fail(_: LaneExecutor) -> None:
        assert graphs.num_recorded == 2
        backend.fail_with = "an illegal call"

    hooks = {8: fail, 9: lambda run: run.set_context_from(run.next_block, prompt(5))}
    spec = spec_of()
    found = latents(spec, 9, graphs, hooks)
    assert torch.equal(found, latents(spec, 9, None, {9: hooks[9]}))
    assert graphs.document()["refusal"] == "an illegal call"
    assert backend.num_recorded == backend.num_released == 2
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "an illegal call" in warnings[0].getMessage()


def test_a_tick_that_reads_values_back_is_not_recorded() -> None:
    forward = DiT.forward

    def reading(self: DiT, lanes: Any) -> Any:
        assert lanes[0].latent_CFHW.sum().item() != 1e9
        return forward(self, lanes)

    graphs = graphs_with(RecordedGraphs())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiT, "forward", reading)
        latents(spec_of(), 4, graphs)
    assert "not permitted" in graphs.refusal


def test_moved_rings_are_recorded_anew() -> None:
    """Also to host memory, where nothing is recorded, and back."""
    backend, spec = RecordedGraphs(), spec_of()
    graphs, recorded = graphs_with(backend), []

    def move(plan: SessionPlan) -> Callable[[LaneExecutor], None]:
        def moved(executor: LaneExecutor) -> None:
            recorded.append(graphs.num_recorded)
            executor.apply_plan(plan)

        return moved

    found = latents(spec, 12, graphs, {7: move(STREAMED), 13: move(RESIDENT)})
    assert torch.equal(found, latents(spec, 12))
    assert recorded == [2, 0] and backend.num_recorded == backend.num_released == 4


def test_recordings_follow_the_weights() -> None:
    """Another session of the model moves them: where they are streamed, nothing is recorded."""
    backend, spec = RecordedGraphs(), spec_of()
    versions: list[int | None] = [0]
    hooks = {tick: lambda _, new=new: versions.append(new) for tick, new in ((7, None), (13, 1))}
    graphs = graphs_with(backend, weights_version=lambda: versions[-1])
    assert torch.equal(latents(spec, 12, graphs, hooks), latents(spec, 12))
    assert backend.num_recorded == backend.num_released == 4


def test_moved_weights_have_another_version(quick: lipcast.Lipcast) -> None:
    store = manager_of(planned(quick)).store
    assert store is not None and store.plan is not None
    before, plan = store.version, store.plan
    assert before is not None
    store.apply_plan(replace(plan, layers=("pinned",) * len(plan.layers), num_slots=2))
    assert store.version is None
    store.apply_plan(plan)
    assert store.version not in (None, before)


def test_no_more_than_the_bound() -> None:
    backend, spec = RecordedGraphs(), spec_of()
    found = latents(spec, 6, graphs_with(backend, max_graphs=1))
    assert torch.equal(found, latents(spec, 6)) and backend.num_recorded == 1


@pytest.mark.slow
def test_a_whole_video_is_the_same(
    quick: lipcast.Lipcast, portrait: Path, sound: Callable[[float], Path]
) -> None:
    """Through the public door: frames, the report, and the memory that is given back at the end."""
    made: list[RecordedGraphs] = []

    def make(device: torch.device) -> RecordedGraphs:
        made.append(RecordedGraphs(device))
        return made[-1]

    options = {"size": "64*64", "infer_frames": 12, "sample_steps": 2, "prompt": "calm"}
    recording = lipcast.Lipcast(quick.bundle, LocalBackend(quick.bundle, make_graphs=make))
    found = []
    for model in (quick, recording):
        with model.stream(image=portrait, audio=sound(1.4), **options) as session:
            found.append([torch.from_numpy(block.frames) for block in session])
            report = session.report()
    assert torch.equal(*map(torch.cat, found))
    assert report["graphs"] == {"recorded": 1, "replayed": 2, "refusal": ""}
    assert made[0].num_recorded == made[0].num_released == 1


def test_their_memory_goes_first_when_it_runs_out(
    quick: lipcast.Lipcast,
    portrait: Path,
    sound: Callable[[float], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under a plan that has memory for them; nothing else moves, and the video goes on."""
    made: list[RecordedGraphs] = []

    def make(device: torch.device) -> RecordedGraphs:
        made.append(RecordedGraphs(device))
        return made[-1]

    monkeypatch.setattr("planned.CPU_RATES", replace(CPU, has_cuda=True))
    bundle, manager = (model := planned(quick)).bundle, manager_of(model)
    recording = lipcast.Lipcast(bundle, LocalBackend(bundle, manager, make_graphs=make))
    options = {"size": "64*64", "infer_frames": 12, "sample_steps": 2, "prompt": "calm"}
    with recording.stream(image=portrait, audio=sound(1.9), **options) as session:
        assert isinstance(session.executor, LaneExecutor)
        session.executor.run = Faults({2}).wrap(session.executor.run)  # type: ignore[method-assign]
        assert len(list(session)) == 4
        memory = session.report()["memory"]
        assert session.executor.graphs is None
    assert [taken["fallback"] for taken in memory["fallbacks"]["taken"]] == ["graphs_off"]
    assert not memory["plan"]["cuda_graphs"] and set(memory["plan"]["layers"]) == {"resident"}
    assert [backend.num_recorded for backend in made] == [1]
    assert made[0].num_released == 1
