"""Runs ticks: any list of (block, step) units becomes finished latents, in the order of the list.

Input: ticks, and the speech features of every block when it starts. Output: (block, latent) pairs as
blocks become clean. State: one ring per step, the blocks in flight, the sink in force. One device may own
some of the steps only: then blocks come in from the stage before it, and leave for the next one.
Invariant: the latents do not depend on how units are grouped into ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from lipcast.config.schedule import Tick, Unit
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.conditioning import ReferenceLatents
from lipcast.engine.sampler import NoiseSource, euler_step
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.engine.tick_graphs import TickGraphs
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.session_memory import SessionMemory, SessionPlan, SessionShape
from lipcast.models.attention import KeyValue
from lipcast.models.audio import AudioConditioning
from lipcast.models.dit import BlockConditions, DiT, Lane
from lipcast.models.rope import RotaryTable, ref_frame
from lipcast.models.sink import PlacedSink
from lipcast.models.upload import upload


class Executor(Protocol):
    """Start blocks and run ticks: on one device, on a pipeline of devices, or as a pass-through."""

    @property
    def num_outstanding(self) -> int:
        """Blocks that were run to their last step and have not come out yet."""

    def start(self, block: int, features_LCV: Tensor, *, pose_CFHW: Tensor | None = None) -> None:
        """Prepare a block for its first step.

        Features: [layers, channels, video frames]; of several characters [A, layers, channels, video frames].
        `pose_CFHW`: latents of the block's pose, in a video that follows one.
        """

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Compute the units of a tick; return the clean blocks with their latents [C, F, H, W].

        Blocks are returned in order, possibly later than in the tick of their last step. Without units,
        wait for the next outstanding block.
        """

    def inputs_of(self, block: int) -> tuple[Tensor, ...]:
        """Return the input latents [C, F, H, W] of each step of a block that the last `run` returned.

        Empty where that was not kept: then a continuation estimates it.
        """


_BEFORE = -1
"""Stands for the block that the first text embedding begins with."""


@dataclass(slots=True)
class _InFlight:
    """One block between its first and its last step."""

    latent_CFHW: Tensor
    first_frame: int
    rotary: RotaryTable
    audio: AudioConditioning
    text: tuple[KeyValue, ...]
    pose_FSD: Tensor | None
    inputs: tuple[Tensor, ...] = ()
    """Input latents of each step so far."""
    placed: tuple[int, PlacedSink] | None = None
    """The sink with its reference at a position; anew only where the position varies by step."""


class LaneExecutor:
    """Runs ticks on one device. A call that runs out of memory may be repeated."""

    num_outstanding = 0

    def __init__(
        self,
        model: DiT,
        spec: VideoSpec,
        reference: ReferenceLatents,
        context_TC: Tensor,
        *,
        memory: SessionMemory | None = None,
        snapshot: SessionSnapshot | None = None,
        steps: range | None = None,
        on_replayed: Callable[[], None] | None = None,
        graphs: TickGraphs | None = None,
        later_contexts: Mapping[int, Tensor] = MappingProxyType({}),
        mask_AS: Tensor | None = None,
    ) -> None:
        """`context_TC` holds until one of `later_contexts` begins, which are by block.
        `memory` holds rings and sink; by default all of it is on the device of the model.
        `steps`: those computed here, by default all. `on_replayed` is called after every replayed block.
        `graphs` replays ticks while all memory is on the device.
        `mask_AS`: tokens that the voice of each of several characters moves; None: there is one.

        With a `snapshot` the first block to start is `snapshot.next_block`; `memory` then has the shape of
        `session_shape(spec, snapshot)`.
        """
        self._model = model
        self._spec = spec
        self._motion_CFHW = reference.motion_CFHW
        self._mask_A1S = None if mask_AS is None else mask_AS.to(model.device, model.dtype)[:, None]
        self._noise = NoiseSource(spec.options.seed, spec.geometry)
        first_block = 0 if snapshot is None else snapshot.first_block
        self._contexts = {_BEFORE: context_TC, **later_contexts}
        """Text embeddings by the block that each begins with."""
        self.context_TC = self._context_of(first_block)
        """The text embedding of the block that was started last."""
        self._text: tuple[KeyValue, ...] = _encode_text(model, self.context_TC)
        self._times = [model.encode_time(t) for t in spec.flow.timesteps]
        self._steps = steps or range(spec.order.num_steps)
        shape = session_shape(spec, snapshot, steps)
        self._num_lanes = shape.num_lanes
        self.graphs = graphs
        self.memory = memory or SessionMemory(model, shape, DeviceContext.of(model.device))
        self._next_ref_C1HW: Tensor | None = reference.ref_C1HW
        """The reference that the sink is prefilled with before the next block starts."""
        self._ref_C1HW: Tensor | None = None
        """The reference that the sink holds."""
        self._swap_ref_C1HW: Tensor | None = None
        """The first clean latent, until the swap block starts."""
        self._in_flight: dict[int, _InFlight] = {}
        self._on_replayed = on_replayed
        self._last_inputs: tuple[int, tuple[Tensor, ...]] = -1, ()
        """The newest finished block, and what each step took of it."""
        self._snapshot = snapshot
        """Blocks that refill the rings before the next block starts."""
        self.next_block = 0 if snapshot is None else snapshot.next_block
        """The block that starts next."""
        swap_block = spec.order.swap_block
        if snapshot is not None and swap_block is not None:
            if snapshot.next_block > swap_block:
                self._next_ref_C1HW = snapshot.first_C1HW
            else:
                self._swap_ref_C1HW = snapshot.first_C1HW

    @torch.inference_mode()
    def start(
        self,
        block: int,
        features_LCV: Tensor,
        latent_CFHW: Tensor | None = None,
        *,
        pose_CFHW: Tensor | None = None,
    ) -> None:
        """Prepare a block for its first step here; `latent_CFHW` is the output of the previous stage."""
        if block == self._spec.order.swap_block:
            self.swap_reference()
        self.prepare()
        self.renew_context(block)
        self._enter(block, features_LCV, latent_CFHW, pose_CFHW)
        self.next_block = block + 1

    @torch.inference_mode()
    def prepare(self) -> None:
        """Fill sink and rings for the next block, unless they are filled already."""
        self._prefill()
        self._replay()

    def swap_reference(self) -> None:
        """Use the first clean latent as the reference from the next block on."""
        assert not self._in_flight, "the schedule started the swap block too early"
        if self._swap_ref_C1HW is not None:
            self._next_ref_C1HW, self._swap_ref_C1HW = self._swap_ref_C1HW, None

    def set_context_from(self, block: int, context_TC: Tensor) -> None:
        """Change the text embedding [T, C] when a block starts that has not."""
        if self._snapshot is None:  # no earlier block is asked for again
            held = self._begin_of(self.next_block)
            self._contexts = {b: x for b, x in self._contexts.items() if b >= held}
        self._contexts[block] = context_TC

    @torch.inference_mode()
    def renew_context(self, block: int) -> None:
        """Change the text embedding, if this block has another, and the sink with it.

        A block that is in flight keeps the one that it was started with.
        """
        context_TC = self._context_of(block)
        if context_TC is self.context_TC:
            return
        self._text, self.context_TC = _encode_text(self._model, context_TC), context_TC
        self._next_ref_C1HW = self._ref_C1HW if self._next_ref_C1HW is None else self._next_ref_C1HW
        self._prefill()

    def _context_of(self, block: int) -> Tensor:
        return self._contexts[self._begin_of(block)]

    def _begin_of(self, block: int) -> int:
        """Return the block that the text embedding of a block begins with."""
        return max(begin for begin in self._contexts if begin <= block)

    def set_first_latent(self, first_C1HW: Tensor) -> None:
        """Receive the first clean latent from the stage that computed it."""
        self._swap_ref_C1HW = first_C1HW

    def _enter(
        self,
        block: int,
        features_LCV: Tensor,
        latent_CFHW: Tensor | None,
        pose_CFHW: Tensor | None,
    ) -> None:
        """Put the block in flight, as pure noise by default."""
        first, device = self._spec.first_frame(block), self._model.device
        self._in_flight[block] = _InFlight(
            latent_CFHW=self._noise_of(block) if latent_CFHW is None else latent_CFHW,
            first_frame=first,
            rotary=self._model.block_rotary(first, *self._latent_size),
            audio=self._encode_audio(features_LCV),
            text=self._text,
            pose_FSD=None
            if pose_CFHW is None
            else self._model.encode_pose(upload(pose_CFHW, device)),
        )

    def _encode_audio(self, features_LCV: Tensor) -> AudioConditioning:
        mask_A1S, features = self._mask_A1S, upload(features_LCV, self._model.device)
        scale = self._spec.options.audio_scale
        if mask_A1S is None:
            return self._model.encode_audio(features[None], scale=scale)
        frames = self._spec.geometry.latents_per_block
        return self._model.encode_audio(features, mask_A1S.expand(-1, frames, -1), scale=scale)

    @property
    def num_characters(self) -> int:
        """Characters that have a voice of their own."""
        return 1 if self._mask_A1S is None else len(self._mask_A1S)

    @torch.inference_mode()
    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Compute the units of a tick; see `Executor.run`."""
        lanes = self.lanes(tick)
        if self.graphs is None or not self.memory.plan.is_resident:
            return self.finish(tick, self._model(lanes))
        # A block in flight has tensors of its own, as it has memory for its rotated reference.
        keys = [(unit.step, unit.block % self._num_lanes) for unit in tick]
        return self.finish(tick, self.graphs.run(lanes, keys))

    @torch.inference_mode()
    def lanes(self, tick: Tick) -> list[Lane]:
        """Return the units of a tick as lanes, which a pass of the transformer can carry beside others."""
        return [self._lane(unit) for unit in tick]

    @torch.inference_mode()
    def finish(self, tick: Tick, velocities: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Apply the velocities of a tick's lanes; return the clean blocks as `run` does."""
        states = [self._in_flight[unit.block] for unit in tick]
        latents = [
            euler_step(state.latent_CFHW, velocity, self._spec.flow, unit.step)
            for unit, state, velocity in zip(tick, states, velocities, strict=True)
        ]
        # Nothing is changed before everything is computed, so that a failed tick can be repeated.
        for state, latent in zip(states, latents, strict=True):
            state.inputs += (state.latent_CFHW,)
            state.latent_CFHW = latent
        last = self._steps[-1]
        return [(unit.block, self._finish(unit.block)) for unit in tick if unit.step == last]

    def inputs_of(self, block: int) -> tuple[Tensor, ...]:
        """Return the inputs of the timesteps that are computed here."""
        finished, inputs = self._last_inputs
        return inputs if finished == block else ()

    def apply_plan(self, plan: SessionPlan) -> None:
        """Move rings and sink to their new placements; blocks in flight continue."""
        if self.graphs is not None:
            self.graphs.drop()
        for state in self._in_flight.values():
            state.placed = None
        self.memory.apply_plan(plan)

    def release(self) -> None:
        """Free all memory. The executor must not be used afterwards."""
        self._in_flight.clear()
        if self.graphs is not None:
            self.graphs.drop()
        self.memory.release()

    def _lane(self, unit: Unit) -> Lane:
        state = self._in_flight[unit.block]
        conditions = BlockConditions(
            first_frame=state.first_frame,
            rotary=state.rotary,
            sink=self._placed_sink(unit),
            text=state.text,
            audio=state.audio,
            pose_FSD=state.pose_FSD,
        )
        ring = self.memory.rings[unit.step - self._steps.start]
        return Lane(state.latent_CFHW, self._times[unit.step], ring, conditions)

    def _placed_sink(self, unit: Unit) -> PlacedSink:
        state = self._in_flight[unit.block]
        frame = ref_frame(state.first_frame, self._spec.distance(unit.block, unit.step))
        if state.placed is None or state.placed[0] != frame:
            table = self._model.ref_rotary(frame, *self._latent_size)
            buffer_LSNd = self.memory.rotated_ref_buffer(unit.block)
            state.placed = frame, self.memory.sink.place(table, buffer_LSNd)
        return state.placed[1]

    def _finish(self, block: int) -> Tensor:
        state = self._in_flight.pop(block)
        self._last_inputs, latent_CFHW = (block, state.inputs), state.latent_CFHW
        is_clean = self._steps[-1] == self._spec.order.num_steps - 1
        if block == 0 and is_clean and self._spec.order.swap_block is not None:
            self._swap_ref_C1HW = latent_CFHW[:, :1]
        return latent_CFHW

    def _prefill(self) -> None:
        """Fill the sink, if the reference or the text is a new one; blocks in flight keep the old one."""
        if self._next_ref_C1HW is None or self._in_flight:
            return
        self._model.prefill(self._next_ref_C1HW, self._motion_CFHW, self._text, self.memory.sink)
        self._ref_C1HW, self._next_ref_C1HW = self._next_ref_C1HW, None

    def _replay(self) -> None:
        """Refill the rings by another pass of the snapshot's blocks, with the inputs of each step."""
        if self._snapshot is None:
            return
        for block, remembered in enumerate(self._snapshot.blocks, self._snapshot.first_block):
            self.renew_context(block)
            inputs = remembered.inputs or self._estimated_inputs(block, remembered.latent_CFHW)
            try:
                pose_CFHW, first = remembered.pose_CFHW, inputs[self._steps.start]
                self._enter(block, remembered.features_LCV, first, pose_CFHW)
                for step in self._steps:
                    self._in_flight[block].latent_CFHW = inputs[step].to(self._model.device)
                    self._model([self._lane(Unit(block, step))])
            finally:  # a replay that ran out of memory is made again from its first block
                self._in_flight.pop(block, None)
            if self._on_replayed is not None:
                self._on_replayed()
        self._snapshot = None

    def _estimated_inputs(self, block: int, clean_CFHW: Tensor) -> tuple[Tensor, ...]:
        """Return clean latents, noised again to the level of every step."""
        clean_CFHW, noise_CFHW = clean_CFHW.to(self._model.device), self._noise_of(block)
        sigmas = self._spec.flow.sigmas[:-1]
        return tuple(clean_CFHW + sigma * (noise_CFHW - clean_CFHW) for sigma in sigmas)

    def _noise_of(self, block: int) -> Tensor:
        frames = self._spec.geometry.latents_per_block
        noise_CFHW = self._noise.frames(self._spec.first_frame(block), frames)
        return upload(noise_CFHW, self._model.device)

    @property
    def _latent_size(self) -> tuple[int, int]:
        return self._spec.geometry.latent_height, self._spec.geometry.latent_width


def session_shape(
    spec: VideoSpec, snapshot: SessionSnapshot | None = None, steps: range | None = None
) -> SessionShape:
    """Return the sizes that decide the memory of a session, or of these steps of it."""
    geometry, first_block = spec.geometry, 0 if snapshot is None else snapshot.first_block
    num_steps = len(steps or range(spec.order.num_steps))
    return SessionShape(
        window=geometry.window,
        tokens_per_frame=geometry.tokens_per_frame,
        latent_height=geometry.latent_height,
        latent_width=geometry.latent_width,
        num_steps=num_steps,
        num_lanes=min(spec.max_lanes, num_steps),
        start_frame=spec.first_frame(first_block),
    )


def _encode_text(model: DiT, context_TC: Tensor) -> tuple[KeyValue, ...]:
    with torch.inference_mode():
        return model.encode_text(context_TC)
