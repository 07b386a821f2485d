"""Runs ticks: any list of (block, step) units becomes finished latents, in the order of the list.

Input: ticks, and the speech features of every block when it starts. Output: (block, latent) pairs as
blocks become clean. State: one ring per step, the blocks in flight, the sink in force.
Invariant: the latents do not depend on how units are grouped into ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lipcast.core.schedule import Tick, Unit
from lipcast.core.sizes import KVPrecision
from lipcast.core.video_spec import VideoSpec
from lipcast.engine.conditions import Anchor
from lipcast.engine.sampler import NoiseSource, euler_step
from lipcast.models.attention import KeyValue
from lipcast.models.audio import AudioConditioning
from lipcast.models.dit import BlockConditions, DiT, Lane
from lipcast.models.kv_codec import KVCodec, PlainCodec, kv_codec
from lipcast.models.kv_ring import KVRing, PlacedSink, RingLayout, Sink
from lipcast.models.rope import RotaryTable, ref_frame

RingFactory = Callable[[], KVRing]


class Executor(Protocol):
    """Whatever can start blocks and run ticks: one device, a pipeline of devices, a pass-through."""

    def start(self, block: int, features_LCV: Tensor) -> None:
        """Make a block ready for its first step. Features [layers, channels, video frames]."""

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Compute the units of a tick; the blocks that became clean, with latents [C, F, H, W]."""


@dataclass(slots=True)
class _InFlight:
    """One block between its first and its last step."""

    latent_CFHW: Tensor
    first_frame: int
    rotary: RotaryTable
    audio: AudioConditioning
    sink: Sink
    placed: dict[int, PlacedSink] = field(default_factory=dict)
    """By position of the reference: one entry, unless a table of distances varies it by step."""


class LaneExecutor:
    """Runs ticks on one device."""

    def __init__(
        self,
        model: DiT,
        spec: VideoSpec,
        anchor: Anchor,
        context_TC: Tensor,
        *,
        allocate_ring: RingFactory | None = None,
        ring_precision: KVPrecision | None = None,
    ) -> None:
        """`allocate_ring` makes the ring of one step; by default it is resident on the device, in
        `ring_precision`, which is the model's own where none is given."""
        self._model = model
        self._ring_precision = ring_precision
        self._spec = spec
        self._motion_CFHW = anchor.motion_CFHW
        self._noise = NoiseSource(spec.options.seed, spec.geometry)
        self._text: tuple[KeyValue, ...] = model.encode_text(context_TC)
        self._times = [model.encode_time(t) for t in spec.flow.timesteps]
        make = allocate_ring or self._resident_ring
        self._rings = [make() for _ in spec.flow.timesteps]
        self._sink = self._prefill(anchor.ref_C1HW)
        self._next_sink: Sink | None = None
        self._in_flight: dict[int, _InFlight] = {}

    @property
    def kv_bytes(self) -> int:
        """Bytes of all rings and of the sink in force."""
        return sum(ring.num_bytes for ring in self._rings) + self._sink.num_bytes

    @torch.inference_mode()
    def start(self, block: int, features_LCV: Tensor) -> None:
        if block == self._spec.order.anchor_block:
            assert self._next_sink is not None, "the schedule started the anchor block too early"
            self._sink, self._next_sink = self._next_sink, None
        geometry, first = self._spec.geometry, self._spec.first_frame(block)
        noise = self._noise.frames(first, geometry.frames_per_block)
        self._in_flight[block] = _InFlight(
            latent_CFHW=noise.to(self._model.device),
            first_frame=first,
            rotary=self._model.block_rotary(first, *self._latent_size),
            audio=self._model.encode_audio(features_LCV[None].to(self._model.device)),
            sink=self._sink,
        )

    @torch.inference_mode()
    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        velocities = self._model([self._lane(unit) for unit in tick])
        finished = []
        for unit, velocity in zip(tick, velocities, strict=True):
            state = self._in_flight[unit.block]
            state.latent_CFHW = euler_step(state.latent_CFHW, velocity, self._spec.flow, unit.step)
            if unit.step == self._spec.order.num_steps - 1:
                finished.append((unit.block, self._finish(unit.block)))
        return finished

    def _lane(self, unit: Unit) -> Lane:
        state = self._in_flight[unit.block]
        conditions = BlockConditions(
            first_frame=state.first_frame,
            rotary=state.rotary,
            sink=self._placed_sink(state, self._spec.distance(unit.block, unit.step)),
            text=self._text,
            audio=state.audio,
        )
        return Lane(state.latent_CFHW, self._times[unit.step], self._rings[unit.step], conditions)

    def _placed_sink(self, state: _InFlight, distance: int) -> PlacedSink:
        frame = ref_frame(state.first_frame, distance)
        if frame not in state.placed:
            state.placed = {
                frame: state.sink.place(self._model.ref_rotary(frame, *self._latent_size))
            }
        return state.placed[frame]

    def _finish(self, block: int) -> Tensor:
        latent_CFHW = self._in_flight.pop(block).latent_CFHW
        if block == 0 and self._spec.order.anchor_block is not None:
            self._next_sink = self._prefill(latent_CFHW[:, :1])
        return latent_CFHW

    def _prefill(self, ref_C1HW: Tensor) -> Sink:
        with torch.inference_mode():
            return self._model.prefill(ref_C1HW, self._motion_CFHW, self._text)

    def _resident_ring(self) -> KVRing:
        geometry = self._spec.geometry
        return KVRing.allocate(
            RingLayout(self._ring_codec(), geometry.window, geometry.tokens_per_frame),
            num_layers=self._model.config.num_layers,
            device=self._model.device,
            start_frame=self._spec.options.start_frame,
        )

    def _ring_codec(self) -> KVCodec:
        heads, head_dim = self._model.config.num_heads, self._model.config.head_dim
        if self._ring_precision is None:
            return PlainCodec(heads, head_dim, self._model.dtype)
        return kv_codec(self._ring_precision, num_heads=heads, head_dim=head_dim)

    @property
    def _latent_size(self) -> tuple[int, int]:
        return self._spec.geometry.latent_height, self._spec.geometry.latent_width
