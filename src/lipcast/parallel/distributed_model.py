"""A model on several devices: its layout is planned, its ranks are started, and videos are opened on them.

Input: what to load, how many devices, what the videos will mostly be. Output: executor and decoder of one
video at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.loading import LoadSettings
from lipcast.engine.planner_inputs import default_geometry, measure_planner_inputs
from lipcast.engine.session import SessionParts
from lipcast.engine.session_builder import Conditioning
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.env import Launched, logger
from lipcast.errors import CancelledError, RankError, UsageError
from lipcast.parallel.messages import InitRank, RankStats
from lipcast.parallel.pipeline import DistributedSession, PipelineExecutor, RemoteDecoder
from lipcast.parallel.rank_group import FileRendezvous, RankGroup, StartRank, start_process
from lipcast.parallel.roles import decoder_rank, roles_of
from lipcast.parallel.torchrun import TorchrunRendezvous
from lipcast.planning.gpu_options import GpuOptions
from lipcast.planning.hardware import CPU, Hardware, gpu_described
from lipcast.planning.layouts import LayoutPlan, plan_layouts, stage_steps, with_enough_steps
from lipcast.planning.plan import PlanRequest
from lipcast.planning.sizes import speech_encoder_bytes
from lipcast.planning.table import layout_document

_log = logger("parallel.model")
SECOND_CONTEXT_BYTES = 512 << 20
"""What a second process on a GPU takes of it before it computes."""


def plan_distributed(
    settings: LoadSettings, options: GpuOptions, expected: GenerateOptions, *, exactly: bool
) -> tuple[LayoutPlan, PlanRequest]:
    """The fastest layout for such videos, and the request that it answers.

    `exactly`: a layout that leaves a GPU idle will not do.
    Where the number of stages that was asked for needs the last step, it is not folded.
    Raises UsageError, MemoryBudgetError.
    """
    terms = measure_planner_inputs(
        settings.directory,
        settings.device,
        settings.memory,
        precision=settings.precision,
        dtype=settings.dtype,
        hardware=_hardware(settings.device),
    )
    request = terms.request(default_geometry(terms.models), expected)
    constraints = replace(options.constraints, uses_all=exactly)
    found = with_enough_steps(request, options.num_gpus, constraints)
    plan = plan_layouts(found, options.num_gpus, constraints)[0]
    if found != request:
        _log.info("the last step is not folded: %s needs it", plan.layout)
    return plan, found


class DistributedModel:
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
        self.plan, request = plan_distributed(
            settings, options, expected, exactly=launched is not None
        )
        self._is_planned = settings.is_planned
        self._folds = request.fold_last_step
        self._meeting = FileRendezvous()
        self._video: DistributedSession | None = None
        self._num_videos = 0
        meeting = self._meeting.path
        if launched is not None:
            meeting, start = "env", TorchrunRendezvous(launched).start
        else:
            _check_devices(settings.device, self.plan.layout.num_gpus)
        joins = _joins(settings, self.plan, request.num_evaluations, meeting)
        self._distributed = RankGroup(joins, start=start)
        self._distributed.ready()
        self.speech_device = speech_device(settings.device, self.plan, request)
        """Where whoever makes the videos hears their sound."""

    def close(self) -> None:
        """End all ranks."""
        self._distributed.close()

    def adapted(self, options: GenerateOptions) -> GenerateOptions:
        """The options of a video as this layout makes it."""
        schedule = options.schedule or ("wavefront" if self._prefers_wavefront else "sequential")
        folds = options.fold_last_step and self._folds
        return replace(options, schedule=schedule, fold_last_step=folds)

    def open(
        self, spec: VideoSpec, conditioning: Conditioning, snapshot: SessionSnapshot | None
    ) -> SessionParts:
        """Begin a video, made with adapted options; the one before it ends. Raises UsageError, RankError."""
        spec = self._on_stages(spec)
        if self._video is not None:
            self._video.is_current = False
        self._num_videos += 1
        video = DistributedSession(self._distributed, self._num_videos, spec)
        self._video = video
        video.open(conditioning, snapshot)
        first_block = 0 if snapshot is None else snapshot.next_block
        return SessionParts(
            spec,
            PipelineExecutor(video, snapshot),
            RemoteDecoder(video, first_block),
            snapshot,
            describe=lambda: self._document(video),
        )

    @property
    def _prefers_wavefront(self) -> bool:
        """Where weights come from elsewhere for every pass, a stage does all its steps in one."""
        plans = [rank.plan for rank in self.plan.ranks if rank.plan is not None]
        return self._is_planned and any(plan.config.num_lanes > 1 for plan in plans)

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

    def _document(self, video: DistributedSession) -> dict[str, Any]:
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


def rank_document(name: str, told: RankStats) -> dict[str, Any]:
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


def _joins(
    settings: LoadSettings, plan: LayoutPlan, num_steps: int, meeting: str
) -> list[InitRank]:
    roles = roles_of(plan.layout)
    cores = psutil.cpu_count(logical=False) or 1
    return [
        InitRank(
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
