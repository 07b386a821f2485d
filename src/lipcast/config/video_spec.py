"""Every size and order of one video, decided in a pure function of a request and the model's configs.

Input: `GenerateOptions`, configs, the portrait's size. Output: a frozen `VideoSpec` that execution obeys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from lipcast.config.generate_options import GenerateOptions, parse_size
from lipcast.config.geometry import Geometry, fit_size
from lipcast.config.models import VIDEO_FRAMES_PER_LATENT, DiTConfig, VAEConfig
from lipcast.config.randomness import CondDistance, FixedDistance, SeededDistance
from lipcast.config.schedule import Order, lanes_of
from lipcast.config.timesteps import FlowSchedule, flow_schedule
from lipcast.errors import UsageError

_DEFAULT_AREA = 704 * 384


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """Everything about a video that does not depend on its sound."""

    options: GenerateOptions
    geometry: Geometry
    flow: FlowSchedule
    order: Order
    max_lanes: int
    infer_frames: int
    distance: CondDistance

    @property
    def video_frames_per_block(self) -> int:
        return VIDEO_FRAMES_PER_LATENT * self.geometry.latents_per_block

    @property
    def max_frames(self) -> int | None:
        """Bound on the length in video frames; None where only the sound bounds it."""
        clips = self.options.num_clip
        return None if clips is None else clips * self.infer_frames

    def described(self) -> dict[str, Any]:
        """Return the sizes as plain data, for results."""
        geometry = self.geometry
        return {
            "infer_frames": self.infer_frames,
            "steps": self.flow.num_steps,
            "geometry": {**asdict(geometry), "tokens_per_frame": geometry.tokens_per_frame},
        }

    def first_frame(self, block: int) -> int:
        """Return the latent frame at which a block starts, counted from the beginning of all positions."""
        return self.options.start_frame + block * self.geometry.latents_per_block


def video_spec(
    options: GenerateOptions, dit: DiTConfig, vae: VAEConfig, *, height: int, width: int
) -> VideoSpec:
    """Decide all sizes for a portrait of `height` x `width` pixels.

    Raises UsageError where an option asks for what this model cannot do.
    """
    infer_frames = options.infer_frames or dit.infer_frames
    if infer_frames // vae.temporal_factor < dit.latents_per_block:
        least = dit.latents_per_block * vae.temporal_factor
        raise UsageError(
            f"infer_frames: expected at least {least} for this model, got {infer_frames}"
        )
    height, width = _output_size(options, dit, height, width)
    geometry = Geometry.of(dit, vae, height=height, width=width, infer_frames=infer_frames)
    flow = flow_schedule(
        options.sample_steps or dit.sample_steps,
        shift=dit.sample_shift,
        fold_last_step=options.fold_last_step,
    )
    swap_block = geometry.swap_block if options.swap_reference else None
    return VideoSpec(
        options=options,
        geometry=geometry,
        flow=flow,
        order=Order(flow.num_steps, swap_block),
        max_lanes=lanes_of(options.schedule or "sequential", flow.num_steps),
        infer_frames=infer_frames,
        distance=_distance(options),
    )


def respecified(spec: VideoSpec, geometry: Geometry, dit: DiTConfig, *, steps: int) -> VideoSpec:
    """Return the same video in another geometry and number of sampling steps, lanes as before."""
    flow = flow_schedule(steps, shift=dit.sample_shift, fold_last_step=spec.options.fold_last_step)
    swap_block = geometry.swap_block if spec.options.swap_reference else None
    return replace(
        spec,
        geometry=geometry,
        flow=flow,
        order=Order(flow.num_steps, swap_block, prompt_blocks=spec.order.prompt_blocks),
        max_lanes=1 if spec.max_lanes == 1 else flow.num_steps,
        infer_frames=VIDEO_FRAMES_PER_LATENT * geometry.window,
    )


def with_prompt_blocks(spec: VideoSpec, blocks: Collection[int]) -> VideoSpec:
    """Return the same video with another prompt from each of these blocks on."""
    return replace(spec, order=replace(spec.order, prompt_blocks=frozenset(blocks) - {0}))


def _output_size(
    options: GenerateOptions, dit: DiTConfig, height: int, width: int
) -> tuple[int, int]:
    """Return the wanted area in the portrait's aspect; a model trained at one size keeps it by default."""
    if options.size is None and dit.height and dit.width:
        return dit.height, dit.width
    area = parse_size(options.size) if options.size else _DEFAULT_AREA
    return fit_size(height, width, area)


def _distance(options: GenerateOptions) -> CondDistance:
    if options.cond_distance is not None:
        return FixedDistance(options.cond_distance)
    return SeededDistance(options.seed)
