"""The backend of several devices: plans a layout, starts its ranks, opens videos on them.

Input: what to load, the number of devices, the options that most videos will have. Output: `SessionParts` of
one video at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import GpuOptions
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.loading import LoadSettings
from lipcast.engine.planner_inputs import default_geometry, measure_planner_inputs
from lipcast.engine.session import SessionParts
from lipcast.engine.session_builder import Conditioning
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.env import Launched, logger
from lipcast.errors import CancelledError, RankError, UsageError
from lipcast.parallel.fp8_trial import try_elsewhere
from lipcast.parallel.messages import InitRank, RankStats
from lipcast.parallel.pipeline import (
    DistributedSession,
    PipelineExecutor,
    RemoteDecoder,
    RemotePose,
)
from lipcast.parallel.rank_group import FileRendezvous, RankGroup, StartRank, start_process
from lipcast.parallel.roles import decoder_rank, roles_of
from lipcast.parallel.torchrun import TorchrunRendezvous
from lipcast.planning.hardware import CPU, Hardware, gpu_described
from lipcast.planning.inputs import layout_constraints
from lipcast.planning.layouts import LayoutPlan, plan_layouts, stage_steps, with_enough_steps
from lipcast.planning.plan import PlanRequest
from lipcast.planning.sizes import linear_sizes, speech_bytes
from lipcast.planning.table import layout_document

_log = logger("parallel.distributed_model")
SECOND_CONTEXT_BYTES = 512 << 20
"""GPU memory that the CUDA context of a second process takes."""


def plan_distributed(
    settings: LoadSettings, options: GpuOptions, expected: GenerateOptions, *, exactly: bool
) -> tuple[LayoutPlan, PlanRequest]:
    """Return the fastest layout for the `expected` videos, and the request that it answers.

    `exactly` rules out layouts that leave a GPU idle. The last step is not folded where the requested number
    of stages needs it.
    Raises UsageError, MemoryBudgetError.
    """
    inputs = measure_planner_inputs(
        settings.directory,
        settings.device,
        settings.memory,
        precision=settings.precision,
        dtype=settings.dtype,
        hardware=_hardware(settings.device),
        kernels=settings.kernels,
        attention=settings.attention,
        graphs="off",  # ranks launch kernel by kernel
    )
    if inputs.hardware.has_fp8 and inputs.precision in {None, "fp8"}:
        multiplies = try_elsewhere(settings.device, linear_sizes(inputs.models.dit))
        inputs = replace(inputs, hardware=replace(inputs.hardware, multiplies_fp8=multiplies))
    request = inputs.request(default_geometry(inputs.models), expected)
    constraints = layout_constraints(options, uses_all=exactly)
    found = with_enough_steps(request, options.num_gpus, constraints)
    plan = plan_layouts(found, options.num_gpus, constraints)[0]
    if found != request:
        _log.info("not folding the last step: %s need it as a step of its own", plan.layout)
    return plan, found


class DistributedModel:
    """The backend of several devices; its processes end with `close`, or when it is dropped."""

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

        `launched`: a launcher has started the processes, and the layout must use all of them.
        """
        options = _as_launched(options, launched)
        self.plan, request = plan_distributed(
            settings, options, expected, exactly=launched is not None
        )
        self._is_planned = settings.is_planned
        self._folds = request.fold_last_step
        self._rendezvous = FileRendezvous()
        self._video: DistributedSession | None = None
        self._num_videos = 0
        rendezvous = self._rendezvous.path
        if launched is not None:
            rendezvous, start = "env", TorchrunRendezvous(launched).start
        else:
            _check_devices(settings.device, self.plan.layout.num_gpus)
        inits = _init_messages(settings, self.plan, request.num_evaluations, rendezvous)
        self.ranks = RankGroup(inits, start=start)
        self.ranks.wait_ready()
        self.speech_device = speech_device(settings.device, self.plan, request)
        """Device that runs the speech encoder (wav2vec2)."""

    def close(self) -> None:
        """End all ranks. May be called again."""
        self.ranks.close()

    def adapted(self, options: GenerateOptions) -> GenerateOptions:
        """Return the options of a video as this layout makes it."""
        schedule = options.schedule or ("wavefront" if self._prefers_wavefront else "sequential")
        folds = options.fold_last_step and self._folds
        return replace(options, schedule=schedule, fold_last_step=folds)

    def open(
        self, spec: VideoSpec, conditioning: Conditioning, snapshot: SessionSnapshot | None
    ) -> SessionParts:
        """Return the parts of a new video, whose options were adapted; the one before it is cancelled.

        Raises UsageError, RankError, MemoryBudgetError.
        """
        spec = self._on_stages(spec)
        if self._video is not None:
            self._video.is_current = False
        self._num_videos += 1
        video = DistributedSession(self.ranks, self._num_videos, spec)
        self._video = video
        try:
            video.open(conditioning, snapshot)
        except BaseException:
            video.release()
            raise
        first_block = 0 if snapshot is None else snapshot.next_block
        executor = PipelineExecutor(video, snapshot)
        return SessionParts(
            spec,
            executor,
            RemoteDecoder(video, first_block),
            snapshot,
            describe=lambda: self._document(video),
            release=video.release,
            pose_latents=None
            if conditioning.pose is None
            else RemotePose(video, conditioning.pose, first_block).latents,
            # Ranks that share weights would have to fill their sinks in one tick, which was not scheduled.
            set_context=None if self.plan.layout.sharded else executor.set_context,
        )

    @property
    def _prefers_wavefront(self) -> bool:
        """Whether stages run all their steps in one pass, as streamed weights prefer."""
        plans = [rank.plan for rank in self.plan.ranks if rank.plan is not None]
        return self._is_planned and any(plan.num_lanes > 1 for plan in plans)

    def _on_stages(self, spec: VideoSpec) -> VideoSpec:
        layout, num_steps = self.plan.layout, spec.order.num_steps
        if num_steps < layout.stages:
            raise UsageError(
                f"expected at least {layout.stages} evaluated steps for {layout}, got {num_steps}; "
                "raise --sample_steps, pass --no-fold_last_step, or use fewer GPUs"
            )
        stages = stage_steps(num_steps, layout.stages)
        most = max(len(steps) for steps in stages)
        order = replace(spec.order, stages=stages, drains_at_swap=layout.sharded)
        return replace(spec, order=order, max_lanes=most if spec.max_lanes > 1 else 1)

    def _document(self, video: DistributedSession) -> dict[str, Any]:
        """Return the layout and, unless the ranks have ended, what each of them did."""
        layout = layout_document(self.plan)
        try:
            stats = video.get_stats()
        except (RankError, CancelledError):
            return {"layout": layout}
        roles = roles_of(self.plan.layout)
        ranks = [rank_document(str(role), each) for role, each in zip(roles, stats, strict=True)]
        busiest = max(ranks, key=lambda rank: rank["busy"])
        bottleneck = (
            f"the bottleneck is {busiest['rank']}, which was busy {busiest['busy']:.0%} of the time"
        )
        return {"layout": layout, "ranks": ranks, "bottleneck": bottleneck}


def rank_document(name: str, stats: RankStats) -> dict[str, Any]:
    """Return what one rank did: seconds by part, and the share of the time that it was busy."""
    seconds = stats.seconds
    busy_s = seconds["compute_s"] + seconds["decode_s"]
    whole_s = sum(seconds.values())
    return {
        "rank": name,
        "seconds": seconds,
        "busy": busy_s / whole_s if whole_s else 0.0,
        "memory": stats.memory,
    }


def speech_device(device: torch.device, plan: LayoutPlan, request: PlanRequest) -> torch.device:
    """Return the GPU that decodes if the speech encoder and a second process fit there, else the CPU.

    The published encoder takes seconds of two cores for a block.
    """
    decoder = plan.ranks[-1]
    is_counted = decoder.plan is not None and decoder.plan.speech_encoder == "device"
    needed = SECOND_CONTEXT_BYTES
    needed += 0 if is_counted else speech_bytes(request.models.speech)
    if device.type == "cpu" or request.budget.vram_bytes - decoder.vram_bytes < needed:
        return torch.device("cpu")
    return _device(device, decoder_rank(plan.layout))


def _init_messages(
    settings: LoadSettings, plan: LayoutPlan, num_steps: int, rendezvous: str
) -> list[InitRank]:
    roles = roles_of(plan.layout)
    cores = psutil.cpu_count(logical=False) or 1
    return [
        InitRank(
            role.rank,
            plan.layout,
            replace(settings, device=_device(settings.device, role.rank), graphs="off"),
            num_steps,
            rendezvous,
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
            f"gpus: expected {launched.num_processes}, the number of launched processes, got {options.gpus}"
        )
    return replace(options, gpus=launched.num_processes)


def _check_devices(device: torch.device, num_gpus: int) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < num_gpus:
        raise UsageError(
            f"expected {num_gpus} GPUs, found {torch.cuda.device_count()}; pass a smaller --gpus"
        )


def _hardware(device: torch.device) -> Hardware:
    """Return what is known of a device without using its memory."""
    if device.type == "cpu":
        return CPU
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major, properties.minor
    return gpu_described(properties.name, properties.total_memory, capability)
