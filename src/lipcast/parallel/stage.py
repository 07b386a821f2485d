"""What one rank does of one video: denoising steps, decoding, or both.

Input: messages in their order. Output: latents to the next rank, clean blocks and frames to whoever makes the
video. State: rings and sink of the rank's steps, the decoder's caches, what is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.conditioning import ReferenceLatents, encode_reference
from lipcast.engine.decode import FrameDecoder, PendingFrames, StreamingDecoder
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.engine.fallback import Ladder
from lipcast.engine.retry import retry_on_oom
from lipcast.engine.session import SessionParts
from lipcast.engine.session_builder import last_latents
from lipcast.engine.snapshot import SessionSnapshot
from lipcast.engine.stopwatch import Stopwatch
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.manager import Admission, MemoryManager, session_plan
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.parallel.flow import LatentReceiver, LatentSender
from lipcast.parallel.messages import Encoded, EncodePortrait, Floats, Frames, StartSession
from lipcast.parallel.roles import Role
from lipcast.planning.plan import Plan
from lipcast.weights.bundle import ModelBundle

if TYPE_CHECKING:
    from lipcast.parallel.fsdp import ShardedWeights

_Result = TypeVar("_Result")
RANK_PARTS = ("compute_s", "decode_s", "wait_s", "send_s")


@dataclass(frozen=True, slots=True)
class Networks:
    """What a rank computes with."""

    role: Role
    bundle: ModelBundle
    memory_manager: MemoryManager | None
    sharded: ShardedWeights | None
    num_heads: int
    """Attention heads that stay on this rank."""

    @property
    def device(self) -> torch.device:
        return self.bundle.device


class StageVideo:
    """The steps of this rank."""

    def __init__(self, networks: Networks, opened: StartSession, watch: Stopwatch) -> None:
        """Raises torch.OutOfMemoryError, MemoryBudgetError where the rings do not fit."""
        self._networks, self._watch = networks, watch
        role, spec, snapshot = networks.role, opened.spec, opened.snapshot
        snapshot = None if snapshot is None else snapshot.to(networks.device)
        self._spec = spec
        self._steps = role.steps(spec.order.num_steps)
        self._features: dict[int, Floats] = {}
        self.ladder: Ladder | None = None
        self._admission: Admission | None = None
        plan = self._plan()
        dit = networks.bundle.dit
        shape = replace(session_shape(spec, snapshot, self._steps), num_heads=networks.num_heads)
        device_context = (
            networks.memory_manager.device_context
            if networks.memory_manager
            else DeviceContext.of(networks.device)
        )
        motion_CFHW = self._tensor(opened.motion_CFHW)
        anchor = ReferenceLatents(
            self._tensor(opened.ref_C1HW), motion_CFHW, still_CFHW=motion_CFHW
        )
        self._executor = LaneExecutor(
            dit,
            spec,
            anchor,
            self._tensor(opened.context_TC),
            memory=SessionMemory(dit, shape, device_context, plan),
            snapshot=snapshot,
            steps=self._steps,
            on_replayed=self._keep_pace_of_replay,
        )
        self._inlet = _inlet(networks, spec)
        self._outlet = None if role.after is None else LatentSender(role.after)
        self._retry_on_oom(self._executor.prepare)

    def set_features(self, block: int, features_LCV: Floats) -> None:
        """The voice of a block that will start."""
        self._features[block] = features_LCV

    def learn_first(self, latent_C1HW: Floats) -> None:
        """The first clean latent of the video."""
        self._executor.learn_first(self._tensor(latent_C1HW))

    def expect(self, tick: Tick) -> None:
        """Begin to receive the blocks that come in for this tick."""
        if self._inlet is not None:
            for unit in tick:
                if unit.step == self._steps.start:
                    self._inlet.expect(unit.block)

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Do this rank's units; the blocks that have passed its last step, on their way to the next."""
        own = tuple(unit for unit in tick if unit.step in self._steps)
        sharded = self._networks.sharded
        if sharded is not None:
            self._renew_together(tick)
        starting = [unit.block for unit in own if unit.step == self._steps.start]
        for block in starting:
            self._start(block)
        if sharded is not None and not starting:
            sharded.join_collectives("voice")
        if not own:
            if sharded is not None:
                sharded.join_collectives("tick")
            return []
        with self._watch.part("compute_s"):
            finished = self._retry_on_oom(partial(self._executor.run, own), own[0].block)
        if self._outlet is not None:
            with self._watch.part("send_s"):
                for _, latent in finished:
                    self._outlet.send(latent)
        return finished

    def inputs_of(self, block: int) -> tuple[int, tuple[Floats, ...]]:
        """The first step here, and what each step here took of a block that has just passed."""
        return self._steps.start, tuple(map(_array, self._executor.inputs_of(block)))

    def close(self) -> None:
        """Everything sent has arrived; the memory is given back."""
        if self._outlet is not None:
            self._outlet.finish()
        self._executor.release()
        if self._admission is not None:
            self._admission.release()

    def _start(self, block: int) -> None:
        features, latent = torch.from_numpy(self._features.pop(block)), None
        if self._inlet is not None:
            with self._watch.part("wait_s"):
                latent = self._inlet.take(block)
        with self._watch.part("compute_s"):
            self._retry_on_oom(partial(self._executor.start, block, features, latent), block)

    def _renew_together(self, tick: Tick) -> None:
        """With sharded weights all stages fill their sinks in the same tick."""
        anchor = self._spec.order.anchor_block
        if any(unit.block == anchor and unit.step == 0 for unit in tick):
            self._executor.renew_sink()
            self._executor.prepare()

    def _keep_pace_of_replay(self) -> None:
        """Stages with more steps make more passes for a block of the past."""
        sharded, layout = self._networks.sharded, self._networks.role.layout
        if sharded is not None:
            most = -(-self._spec.order.num_steps // layout.stages)
            for _ in range(most - len(self._steps)):
                sharded.join_collectives("tick")

    def _plan(self) -> SessionPlan | None:
        """Where rings and sink live; weights are moved to where the plan wants them."""
        memory_manager = self._networks.memory_manager
        if memory_manager is None:
            return None
        self._admission = memory_manager.admit(self._spec.geometry, self._spec.options)
        plan = self._admission.plan
        self._admission.apply_plan(plan)
        layout = self._networks.role.layout
        if layout.ulysses == 1:
            # Ranks that exchange within a pass cannot repeat one alone.
            fallbacks = [
                fallback
                for fallback in memory_manager.fallbacks(plan)
                if fallback.fallback.keeps_the_picture
            ]
            self.ladder = Ladder(
                plan,
                fallbacks,
                move=self._move,
                restart=_no_restart,
                used_bytes=memory_manager.used_bytes,
            )
        return session_plan(plan)

    def _move(self, plan: Plan) -> None:
        """Bring about a plan that keeps the picture."""
        assert self._networks.memory_manager is not None
        if self._networks.device.type == "cuda":
            torch.cuda.empty_cache()
        assert self._admission is not None
        self._admission.apply_plan(plan)
        self._executor.apply_plan(session_plan(plan))

    def _retry_on_oom(self, call: Callable[[], _Result], block: int = 0) -> _Result:
        return retry_on_oom(call, self.ladder, block)

    def _tensor(self, array: Floats) -> Tensor:
        return torch.from_numpy(array).to(self._networks.device)


class DecoderVideo:
    """The frames of a video. With a rank of its own the blocks come in from the last stage."""

    def __init__(self, networks: Networks, asked: EncodePortrait, watch: Stopwatch) -> None:
        """Encodes the portrait; `encoded` is what the stages need of it."""
        self._video, self._watch = asked.video, watch
        bundle, spec, role = networks.bundle, asked.spec, networks.role
        self._last_step = spec.order.num_steps - 1
        anchor = encode_reference(
            bundle.vae,
            asked.portrait_HWC,
            config=bundle.dit.config,
            encoding=spec.options.anchor,
            device=networks.device,
        )
        self.encoded = Encoded(asked.video, _array(anchor.ref_C1HW), _array(anchor.motion_CFHW))
        snapshot = None if asked.snapshot is None else asked.snapshot.to(networks.device)
        self._decoder = FrameDecoder(
            _tiled(networks, spec),
            anchor,
            resume_CFHW=last_latents(snapshot) if snapshot else None,
        )
        self._inlet = _inlet(networks, spec) if role.stage is None else None
        self._pending: deque[tuple[int, PendingFrames]] = deque()

    @property
    def is_decoding(self) -> bool:
        return bool(self._pending)

    def expect(self, tick: Tick) -> None:
        """Begin to receive the blocks that become clean in this tick."""
        if self._inlet is not None:
            for unit in tick:
                if unit.step == self._last_step:
                    self._inlet.expect(unit.block)

    def run(self, tick: Tick) -> None:
        """Decode what becomes clean in this tick."""
        for unit in tick:
            if unit.step == self._last_step:
                assert self._inlet is not None
                with self._watch.part("wait_s"):
                    latent = self._inlet.take(unit.block)
                self.submit(unit.block, latent)

    def submit(self, block: int, latent_CFHW: Tensor) -> None:
        """Begin to decode the next block."""
        with self._watch.part("decode_s"):
            self._pending.append((block, self._decoder.submit(latent_CFHW)))

    def collect(self, *, wait: bool) -> Iterator[Frames]:
        """The frames that are ready; with `wait` the next ones at least, if there are any."""
        while self._pending and (wait or self._pending[0][1].is_ready):
            block, pending = self._pending.popleft()
            with self._watch.part("decode_s"):
                pixels = pending.collect()
            yield Frames(self._video, block, pixels)
            wait = False

    def close(self) -> None:
        """Nothing is decoded here any more."""
        self._pending.clear()
        self._decoder.release()


def _tiled(networks: Networks, spec: VideoSpec) -> StreamingDecoder:
    """The decoder, in tiles where the plan of this rank says so."""
    decoder, memory_manager = networks.bundle.decoder, networks.memory_manager
    if memory_manager is None:
        return decoder
    tiles = memory_manager.plan(spec.geometry, spec.options).config.tiles
    return decoder if tiles == (1, 1) else TiledDecoder(decoder, tiles, park=True)


def _no_restart(plan: Plan, snapshot: SessionSnapshot | None) -> SessionParts:
    raise AssertionError(f"a rank takes no rung that changes the picture: {plan}, {snapshot}")


def _inlet(networks: Networks, spec: VideoSpec) -> LatentReceiver | None:
    """Where the blocks of the rank before come in; None for the first stage."""
    before, geometry = networks.role.before, spec.geometry
    size = geometry.latent_height, geometry.latent_width
    shape = (geometry.latent_channels, geometry.latents_per_block, *size)
    return None if before is None else LatentReceiver(before, shape, networks.device)


def _array(x: Tensor) -> Floats:
    array: Floats = x.detach().float().cpu().contiguous().numpy()
    return array
