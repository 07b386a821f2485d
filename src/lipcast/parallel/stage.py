"""The work of one rank on one video: denoising steps, decoding, or both.

Input: messages in order. Output: latents to the next rank, clean blocks and frames to the main process.
State: rings and sink of the rank's steps, the decoder's caches, blocks in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from lipcast.config.schedule import Tick
from lipcast.config.video_spec import VideoSpec
from lipcast.engine.conditioning import ReferenceLatents, encode_reference
from lipcast.engine.decode import DecodeQueue, FrameDecoder, StreamingDecoder
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.engine.fallback import Ladder
from lipcast.engine.pose import PoseEncoder
from lipcast.engine.retry import retry_on_oom
from lipcast.engine.session_builder import PlannedMemory, last_latents, make_ladder
from lipcast.engine.stopwatch import Stopwatch
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.manager import MemoryManager, session_plan
from lipcast.memory.session_memory import SessionMemory
from lipcast.parallel.messages import (
    AudioFeatures,
    Encoded,
    EncodePortrait,
    Floats,
    Frames,
    Pixels,
    PoseLatents,
    StartSession,
)
from lipcast.parallel.p2p import LatentLink
from lipcast.parallel.roles import Role
from lipcast.planning.plan import Plan
from lipcast.weights.bundle import ModelBundle

if TYPE_CHECKING:
    from lipcast.parallel.fsdp import ShardedWeights

_Result = TypeVar("_Result")
RANK_PARTS = ("compute_s", "decode_s", "wait_s", "send_s")


@dataclass(frozen=True, slots=True)
class RankNetworks:
    """Networks that a rank computes with."""

    role: Role
    bundle: ModelBundle
    memory_manager: MemoryManager | None
    sharded: ShardedWeights | None
    num_heads: int
    """Attention heads whose keys and values are kept on this rank."""

    @property
    def device(self) -> torch.device:
        """Device of this rank."""
        return self.bundle.device


class StageVideo:
    """The steps of one stage, for one video."""

    def __init__(
        self, networks: RankNetworks, opened: StartSession, latents: LatentLink, watch: Stopwatch
    ) -> None:
        """Fill rings and sink. Raises torch.OutOfMemoryError or MemoryBudgetError, and keeps nothing then."""
        self._networks, self._latents, self._watch = networks, latents, watch
        self._spec = opened.spec
        self._steps = networks.role.steps(opened.spec.order.num_steps)
        self._features: dict[int, AudioFeatures] = {}
        self._executor: LaneExecutor | None = None
        self._planned = _admit(networks, opened.spec, opened.num_characters)
        self._ladder: Ladder | None = None
        try:
            # Ranks that exchange tokens within a pass cannot repeat one alone.
            if self._planned is not None and networks.role.layout.ulysses == 1:
                self._ladder = make_ladder(self._planned, self._follow)
            self._retry_on_oom(partial(self._build, opened))
            self._retry_on_oom(self._running.prepare)
        except BaseException:
            self.close()
            raise

    def set_features(self, given: AudioFeatures) -> None:
        """Keep the speech features and the pose of a block that will start."""
        self._features[given.block] = given

    def set_context(self, block: int, context_TC: Floats) -> None:
        """Change the text embedding when a block starts here."""
        self._running.set_context_from(block, self._tensor(context_TC))

    def set_first_latent(self, latent_C1HW: Floats) -> None:
        """Take over the first clean latent of the video."""
        self._running.set_first_latent(self._tensor(latent_C1HW))

    def run(self, tick: Tick) -> list[tuple[int, Tensor]]:
        """Run the units of this stage; return the blocks that left its last step, sent on already."""
        own = tuple(unit for unit in tick if unit.step in self._steps)
        sharded = self._networks.sharded
        if sharded is not None:
            self._renew_together(tick)
        starting = [unit.block for unit in own if unit.step == self._steps.start]
        for block in starting:
            self._start(block)
        if sharded is not None and not starting:
            sharded.join_collectives("audio")
        if not own:
            if sharded is not None:
                sharded.join_collectives("tick")
            return []
        with self._watch.part("compute_s"):
            finished = self._retry_on_oom(partial(self._running.run, own), own[0].block)
        with self._watch.part("send_s"):
            for block, latent in finished:
                self._latents.send(block, latent)
        return finished

    def inputs_of(self, block: int) -> tuple[int, tuple[Floats, ...]]:
        """Return the first step here, and the noisy latents each step took of the newest finished block."""
        return self._steps.start, tuple(map(_array, self._running.inputs_of(block)))

    def close(self) -> None:
        """Give the memory back. May be called again."""
        self._release_executor()
        if self._planned is not None:
            self._planned.admission.release()

    @property
    def _running(self) -> LaneExecutor:
        assert self._executor is not None, "the stage is closed"
        return self._executor

    def _build(self, opened: StartSession) -> None:
        """Make the executor under the plan in force."""
        self._release_executor()
        networks, spec, dit = self._networks, self._spec, self._networks.bundle.dit
        snapshot = None if opened.snapshot is None else opened.snapshot.to(networks.device)
        plan = None
        if self._planned is not None:
            plan = self._planned.admission.plan
            self._planned.admission.apply_plan(plan)
        motion_CFHW = self._tensor(opened.motion_CFHW)
        reference = ReferenceLatents(
            self._tensor(opened.ref_C1HW), motion_CFHW, history_CFHW=motion_CFHW
        )
        shape = replace(session_shape(spec, snapshot, self._steps), num_heads=networks.num_heads)
        memory = SessionMemory(
            dit, shape, _device_context(networks), None if plan is None else session_plan(plan)
        )
        try:
            self._executor = LaneExecutor(
                dit,
                spec,
                reference,
                self._tensor(opened.context_TC),
                memory=memory,
                snapshot=snapshot,
                steps=self._steps,
                on_replayed=self._join_replay,
                later_contexts={b: self._tensor(x) for b, x in opened.later_contexts.items()},
                mask_AS=None if opened.mask_AS is None else self._tensor(opened.mask_AS),
            )
        except BaseException:
            memory.release()
            raise

    def _start(self, block: int) -> None:
        given = self._features.pop(block)
        features = torch.from_numpy(given.features_LCV)
        pose = None if given.pose_CFHW is None else torch.from_numpy(given.pose_CFHW)
        with self._watch.part("wait_s"):
            latent = self._latents.take(block)
        with self._watch.part("compute_s"):
            start = partial(self._running.start, block, features, latent, pose_CFHW=pose)
            self._retry_on_oom(start, block)

    def _renew_together(self, tick: Tick) -> None:
        """With sharded weights, fill the sinks of all stages in the same tick."""
        order = self._spec.order
        for block in [unit.block for unit in tick if unit.step == 0]:
            if order.renews_sink(block):
                if block == order.swap_block:
                    self._running.swap_reference()
                self._running.prepare()
                self._running.renew_context(block)

    def _join_replay(self) -> None:
        """Join the passes by which stages with more steps than this one replay a block of the snapshot."""
        sharded, layout = self._networks.sharded, self._networks.role.layout
        if sharded is not None:
            most = -(-self._spec.order.num_steps // layout.stages)
            for _ in range(most - len(self._steps)):
                sharded.join_collectives("tick")

    def _follow(self, plan: Plan) -> None:
        """Move rings and sink to where a plan that keeps the picture wants them."""
        if self._executor is not None:
            self._executor.apply_plan(session_plan(plan))

    def _retry_on_oom(self, call: Callable[[], _Result], block: int = 0) -> _Result:
        return retry_on_oom(call, self._ladder, block)

    def _release_executor(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.release()

    def _tensor(self, array: Floats) -> Tensor:
        return torch.from_numpy(array).to(self._networks.device)


class DecoderVideo:
    """The frames of one video. A rank that only decodes receives the blocks from the last stage."""

    def __init__(
        self, networks: RankNetworks, asked: EncodePortrait, latents: LatentLink, watch: Stopwatch
    ) -> None:
        """Encode the portrait; `encoded` is the part of it that the stages need."""
        self._video, self._latents, self._watch = asked.video, latents, watch
        bundle, spec = networks.bundle, asked.spec
        self._last_step = spec.order.num_steps - 1
        reference = encode_reference(
            bundle.vae,
            asked.portrait_HWC,
            config=bundle.dit.config,
            encoding=spec.options.reference_encoding,
            device=networks.device,
            motion_FHWC=asked.motion_FHWC,
        )
        ref, motion = _array(reference.ref_C1HW), _array(reference.motion_CFHW)
        self.encoded = Encoded(asked.video, ref, motion)
        snapshot = None if asked.snapshot is None else asked.snapshot.to(networks.device)
        self._decoder = FrameDecoder(
            _tiled(networks, asked),
            reference,
            resume_CFHW=last_latents(snapshot) if snapshot else None,
        )
        self._queue = DecodeQueue()
        self._pictures: deque[Pixels] = deque()
        feed = _Feed(self._pictures)
        self._pose = PoseEncoder(bundle.vae, feed, spec, device=networks.device)

    def encode_pose(self, block: int, pixels_FHWC: Pixels) -> PoseLatents:
        """Return the pose latents of the next block."""
        self._pictures.extend(pixels_FHWC)
        with self._watch.part("compute_s"):
            return PoseLatents(self._video, block, _array(self._pose.latents(block)))

    @property
    def is_decoding(self) -> bool:
        """Whether frames are left to be collected."""
        return len(self._queue) > 0

    def run(self, tick: Tick) -> None:
        """Decode the blocks that become clean in a tick."""
        for unit in tick:
            if unit.step == self._last_step:
                with self._watch.part("wait_s"):
                    latent = self._latents.take(unit.block)
                assert latent is not None
                self.submit(unit.block, latent)

    def submit(self, block: int, latent_CFHW: Tensor) -> None:
        """Begin to decode the next block."""
        self._queue.add(block, self._decoder.submit(latent_CFHW))

    def collect(self, *, wait: bool) -> Iterator[Frames]:
        """Yield the frames that are ready; with `wait`, wait for the first of them."""
        ready = chain(islice(self._queue.take(wait=wait), 1), self._queue.take(wait=False))
        for block, pixels, decode_s in ready:
            self._watch.add("decode_s", decode_s)
            yield Frames(self._video, block, pixels)

    def close(self) -> None:
        """Give the memory back; frames that were not collected are dropped. May be called again."""
        self._queue.clear()
        self._decoder.release()


@dataclass(frozen=True, slots=True)
class _Feed:
    """Pictures of a pose as they are received, from the first that is wanted on."""

    received: deque[Pixels]

    def frames(self, _first: int, _height: int, _width: int) -> Iterator[Pixels]:
        while self.received:
            yield self.received.popleft()


def _admit(
    networks: RankNetworks, spec: VideoSpec, num_characters: int = 1
) -> PlannedMemory | None:
    manager = networks.memory_manager
    if manager is None:
        return None
    admission = manager.admit(spec.geometry, spec.options, num_characters=num_characters)
    return PlannedMemory(manager, admission)


def _device_context(networks: RankNetworks) -> DeviceContext:
    manager = networks.memory_manager
    return DeviceContext.of(networks.device) if manager is None else manager.device_context


def _tiled(networks: RankNetworks, asked: EncodePortrait) -> StreamingDecoder:
    """Return the decoder, in tiles where the plan of this rank says so."""
    decoder, manager = networks.bundle.decoder, networks.memory_manager
    if manager is None:
        return decoder
    geometry, options = asked.spec.geometry, asked.spec.options
    tiles = manager.plan(geometry, options, num_characters=asked.num_characters).config.tiles
    return decoder if tiles == (1, 1) else TiledDecoder(decoder, tiles, park=True)


def _array(x: Tensor) -> Floats:
    array: Floats = x.detach().float().cpu().contiguous().numpy()
    return array
