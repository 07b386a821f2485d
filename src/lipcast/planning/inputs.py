"""What plans are made from: checked options, models, hardware and budget.

Input: options as the user gave them. Output: the planner's constraints, and `PlannerInputs`, which turns
the options of a video into a `PlanRequest`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lipcast.config.fallbacks import Fallback, parse_fallbacks
from lipcast.config.generate_options import GenerateOptions, ScheduleName
from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import GpuOptions, GraphChoice
from lipcast.config.memory_options import MemoryOptions
from lipcast.config.models import Models
from lipcast.config.precision import Precision
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.errors import UsageError
from lipcast.planning.fallbacks import default_fallbacks
from lipcast.planning.hardware import Hardware
from lipcast.planning.layouts import LayoutConstraints
from lipcast.planning.plan import Budget, EncoderPlacement, PlanConstraints, PlanRequest, WorkShare

_PORTRAIT = (1280, 720)
"""Height and width of a portrait that is not known yet; only its aspect matters."""


@dataclass(frozen=True, slots=True)
class PlannerInputs:
    """What the plans of one model are made from."""

    hardware: Hardware
    budget: Budget
    options: MemoryOptions
    models: Models
    precision: Precision | None
    """Precision of the weights; None leaves it to the planner until they are loaded."""
    share: WorkShare = field(default_factory=WorkShare)
    """The part of the work that this device does."""
    speech_encoder: EncoderPlacement | None = None
    """Where the speech encoder is; None leaves it to the planner until it is loaded."""
    graphs: GraphChoice = "auto"
    """Whether ticks may be recorded as CUDA graphs."""

    def request(
        self, geometry: Geometry, options: GenerateOptions, *, num_characters: int = 1
    ) -> PlanRequest:
        """Return the question to the planner for one video. Raises UsageError."""
        if not self.hardware.has_bf16 and self.precision not in (None, "fp32"):
            raise UsageError(needs_bf16(self.precision, self.hardware.label))
        constraints = replace(
            plan_constraints(self.options, self.precision, options.schedule),
            speech_encoder=self.speech_encoder,
            graphs=False if self.graphs == "off" else None,
        )
        return PlanRequest(
            geometry=geometry,
            hardware=self.hardware,
            budget=self.budget,
            models=self.models,
            constraints=constraints,
            sample_steps=options.sample_steps or self.models.dit.sample_steps,
            fold_last_step=options.fold_last_step,
            num_characters=num_characters,
            pose=options.pose,
        )


def needs_bf16(precision: str, card: str) -> str:
    """Say that a card is too old for a precision."""
    return (
        f"precision: {card} has no bf16, which {precision} needs; use fp32, or a GPU from 2020 on"
    )


def plan_constraints(
    options: MemoryOptions, precision: Precision | None, schedule: ScheduleName | None
) -> PlanConstraints:
    """Return what a plan has to respect."""
    return PlanConstraints(
        precision=precision,
        kv_precision=options.kv_precision,
        schedule=schedule,
        max_resident_layers=0 if options.offload_model else None,
        max_resident_ring_layers=0 if options.offload_kv_cache else None,
        stream_sink=True if options.offload_kv_cache else None,
    )


def layout_constraints(options: GpuOptions, *, uses_all: bool = False) -> LayoutConstraints:
    """Return what a layout has to respect; `uses_all` allows none that leaves a GPU idle."""
    return LayoutConstraints(
        num_gpus_dit=options.num_gpus_dit,
        ulysses_size=options.ulysses_size,
        vae_rank=options.enable_vae_parallel or None,
        sharded=options.dit_fsdp or None,
        uses_all=uses_all,
    )


def allowed_fallbacks(options: MemoryOptions, request: PlanRequest) -> tuple[Fallback, ...]:
    """Return the fallbacks that may be taken, in order."""
    if options.fallback == "none":
        return ()
    if options.fallback is not None:
        return parse_fallbacks(options.fallback)
    return default_fallbacks(request, allow_degrade=options.allow_degrade)


def supposed_spec(options: GenerateOptions, models: Models) -> VideoSpec:
    """Return the sizes and orders of a video of an upright portrait, before the portrait is known."""
    height, width = _PORTRAIT
    return video_spec(options, models.dit, models.vae, height=height, width=width)
