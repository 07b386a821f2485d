"""A model on several devices: its layout is planned, its ranks are started, and videos are opened on them.

Input: what to load, how many devices, what the videos will mostly be. Output: executor and decoder of one
video at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from lipcast.core.gpu_options import GpuOptions
from lipcast.core.hardware import CPU, Hardware, gpu_described
from lipcast.core.plan_gpus import LayoutPlan, plan_layouts, stage_steps, with_enough_steps
from lipcast.core.plan_table import layout_document
from lipcast.core.plan_types import PlanRequest
from lipcast.core.request import GenerateOptions
from lipcast.core.sizes import speech_encoder_bytes
from lipcast.core.video_spec import VideoSpec
from lipcast.engine.loading import LoadSettings
from lipcast.engine.opening import Subject
from lipcast.engine.past import Past
from lipcast.engine.terms import default_geometry, plan_terms
from lipcast.errors import CancelledError, RankError, UsageError
from lipcast.parallel.crew import Crew, MeetingPlace, StartRank, start_process
from lipcast.parallel.messages import Join, Told
from lipcast.parallel.pipeline import CrewDecoder, CrewExecutor, CrewVideo
from lipcast.parallel.roles import decoder_rank, roles_of
from lipcast.parallel.torchrun import Gathering
from lipcast.runtime import Launched, logger

_log = logger("parallel.model")
SECOND_CONTEXT_BYTES = 512 << 20
"""What a second process on a GPU takes of it before it computes."""


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """What a session of several devices runs on."""

    spec: VideoSpec
    executor: CrewExecutor
    decoder: CrewDecoder
    describe: Callable[[], dict[str, Any]]


def plan_crew(
    settings: LoadSettings, options: GpuOptions, expected: GenerateOptions, *, exactly: bool
) -> tuple[LayoutPlan, PlanRequest]:
    """The fastest layout for such videos, and the request that it answers.

    `exactly`: a layout that leaves a GPU idle will not do.
    Where the number of stages that was asked for needs the last step, it is not folded.
    Raises UsageError, MemoryBudgetError.
    """
    terms = plan_terms(
        settings.directory,
        settings.device,
        settings.memory,
        precision=settings.precision,
        dtype=settings.dtype,
        hardware=_hardware(settings.device),
    )
    request = terms.request(default_geometry(terms.models), expected)
    wishes = replace(options.wishes, uses_all=exactly)
    found = with_enough_steps(request, options.num_gpus, wishes)
    plan = plan_layouts(found, options.num_gpus, wishes)[0]
    if found != request:
        _log.info("the last step is not folded: %s needs it", plan.layout)
    return plan, found


class CrewModel:
    """The ranks of one model. Close it, or let it go: its processes end with it."""

    def __init__(
        self,
        settings: LoadSettings,
        options: GpuOptions,
        expected: GenerateOptions,
        *,
        start: StartRank = start_process,
        launched: Launched | None = None,
    ) -> None:
        """Plan, start the ranks, and wait until they have loaded their networks.

        `launched`: the ranks are there already, as many as the layout must have.
        """
        options = _as_launched(options, launched)
        self.plan, request = plan_crew(settings, options, expected, exactly=launched is not None)
        self._is_planned = settings.is_planned
        self._folds = request.fold_last_step
        self._meeting = MeetingPlace()
        self._video: CrewVideo | None = None
        self._num_videos = 0
        meeting = self._meeting.path
        if launched is not None:
            meeting, start = "env", Gathering(launched).start
        else:
            _check_devices(settings.device, self.plan.layout.num_gpus)
        joins = _joins(settings, self.plan, request.num_evaluations, meeting)
        self._crew = Crew(joins, start=start)
        self._crew.ready()
        self.speech_device = speech_device(settings.device, self.plan, request)
        """Where whoever makes the videos hears their sound."""

    def close(self) -> None:
        """End all ranks."""
        self._crew.close()

    def adapted(self, options: GenerateOptions) -> GenerateOptions:
        """The options of a video as this layout makes it."""
        schedule = options.schedule or ("wavefront" if self._prefers_wavefront else "sequential")
        folds = options.fold_last_step and self._folds
        return replace(options, schedule=schedule, fold_last_step=folds)

    def open(self, spec: VideoSpec, subject: Subject, past: Past | None) -> OpenVideo:
        """Begin a video, made with adapted options; the one before it ends. Raises UsageError, RankError."""
        spec = self._on_stages(spec)
        if self._video is not None:
            self._video.is_current = False
        self._num_videos += 1
        video = CrewVideo(self._crew, self._num_videos, spec)
        self._video = video
        video.open(subject, past)
        first_block = 0 if past is None else past.next_block
        return OpenVideo(
            spec,
            CrewExecutor(video, past),
            CrewDecoder(video, first_block),
            lambda: self._document(video),
        )

    @property
    def _prefers_wavefront(self) -> bool:
        """Where weights come from elsewhere for every pass, a stage does all its steps in one."""
        plans = [rank.plan for rank in self.plan.ranks if rank.plan is not None]
        return self._is_planned and any(plan.choice.num_lanes > 1 for plan in plans)

    def _on_stages(self, spec: VideoSpec) -> VideoSpec:
        layout, num_steps = self.plan.layout, spec.order.num_steps
        if num_steps < layout.stages:
            raise UsageError(
                f"expected at least {layout.stages} evaluated steps for {layout}, got {num_steps}; "
                "take more --sample_steps, --no-fold_last_step, or fewer GPUs"
            )
        stages = stage_steps(num_steps, layout.stages)
        most = max(len(steps) for steps in stages)
        order = replace(spec.order, stages=stages, drains_at_anchor=layout.sharded)
        return replace(spec, order=order, max_lanes=most if spec.max_lanes > 1 else 1)

    def _document(self, video: CrewVideo) -> dict[str, Any]:
        """The layout, and what every rank did, while they can tell."""
        layout = layout_document(self.plan)
        try:
            told = video.tell()
        except (RankError, CancelledError):
            return {"layout": layout}
        roles = roles_of(self.plan.layout)
        ranks = [rank_document(str(role), each) for role, each in zip(roles, told, strict=True)]
        busiest = max(ranks, key=lambda rank: rank["busy"])
        bottleneck = (
            f"the bottleneck is {busiest['rank']}, which worked {busiest['busy']:.0%} of the time"
        )
        return {"layout": layout, "ranks": ranks, "bottleneck": bottleneck}


def rank_document(name: str, told: Told) -> dict[str, Any]:
    """What one rank did: seconds by part, and the share of the time that it worked."""
    seconds = told.seconds
    busy_s = seconds["compute_s"] + seconds["decode_s"]
    whole_s = sum(seconds.values())
    return {
        "rank": name,
        "seconds": seconds,
        "busy": busy_s / whole_s if whole_s else 0.0,
        "memory": told.memory,
    }


def speech_device(device: torch.device, plan: LayoutPlan, request: PlanRequest) -> torch.device:
    """The GPU that decodes, if it has room for the speech encoder and one more process; else the CPU.

    The published encoder takes seconds of two cores for a block.
    """
    decoder = plan.ranks[-1]
    is_counted = decoder.plan is not None and decoder.plan.speech_encoder == "device"
    needed = SECOND_CONTEXT_BYTES
    needed += 0 if is_counted else speech_encoder_bytes(request.models.speech)
    if device.type == "cpu" or request.budget.vram_bytes - decoder.vram_bytes < needed:
        return torch.device("cpu")
    return _device(device, decoder_rank(plan.layout))


def _joins(settings: LoadSettings, plan: LayoutPlan, num_steps: int, meeting: str) -> list[Join]:
    roles = roles_of(plan.layout)
    cores = psutil.cpu_count(logical=False) or 1
    return [
        Join(
            role.rank,
            plan.layout,
            replace(settings, device=_device(settings.device, role.rank)),
            num_steps,
            meeting,
            num_threads=max(1, cores // len(roles)),
        )
        for role in roles
    ]


def _device(device: torch.device, rank: int) -> torch.device:
    return device if device.type == "cpu" else torch.device(device.type, rank)


def _as_launched(options: GpuOptions, launched: Launched | None) -> GpuOptions:
    if launched is None:
        return options
    if launched.rank:
        raise UsageError(
            f"expected the process of rank 0 to load the model, got rank {launched.rank}; call "
            "lipcast.parallel.torchrun.serve_launched in the others"
        )
    if options.gpus not in {None, launched.num_processes}:
        raise UsageError(
            f"gpus: expected {launched.num_processes}, the processes of the launcher, got {options.gpus}"
        )
    return replace(options, gpus=launched.num_processes)


def _check_devices(device: torch.device, num_gpus: int) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < num_gpus:
        raise UsageError(
            f"expected {num_gpus} GPUs, found {torch.cuda.device_count()}; take fewer with --gpus"
        )


def _hardware(device: torch.device) -> Hardware:
    """Looked up without taking memory of the device."""
    if device.type == "cpu":
        return CPU
    properties = torch.cuda.get_device_properties(device)
    return gpu_described(properties.name, properties.total_memory)
