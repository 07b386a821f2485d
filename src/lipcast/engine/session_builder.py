"""Makes the parts of one session, at first and after every fallback, and gives their memory back.

Input: networks, conditioning inputs, a spec; an admission where memory is planned. Output: `SessionParts`.
State: the executor and the decoder in force. Invariant: after `release`, and after an error, nothing is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipcast.config.geometry import Geometry
from lipcast.config.video_spec import VideoSpec, respecified
from lipcast.engine.conditioning import ReferenceLatents, encode_reference, token_mask
from lipcast.engine.decode import FrameDecoder, StreamingDecoder
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.engine.fallback import Ladder
from lipcast.engine.pose import PoseEncoder, PosePictures
from lipcast.engine.retry import retry_on_oom
from lipcast.engine.session import ReplanRequired, SessionParts
from lipcast.engine.snapshot import BlockSnapshot, SessionSnapshot
from lipcast.engine.tick_graphs import TickGraphs
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.graphs import GraphBackend
from lipcast.memory.manager import Admission, MemoryManager, session_plan
from lipcast.memory.session_memory import SessionMemory
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState
from lipcast.planning.plan import Plan

FitPortrait = Callable[[int, int], NDArray[np.uint8]]
"""(height, width) -> pixels RGB [height, width, 3]."""
FitMasks = Callable[[int, int], NDArray[np.uint8]]
"""(height, width) -> masks [A, height, width], above 0 where each of several characters is."""
LastFrames = Callable[[int, int], NDArray[np.uint8]]
"""(height, width) -> frames RGB [frames, height, width, 3], as many as motion latents are made of."""
MakeExecutor = Callable[..., LaneExecutor]
"""Called as `LaneExecutor` is: (model, spec, reference, context_TC, *, memory, snapshot, graphs,
later_contexts, mask_AS)."""
MakeGraphs = Callable[[torch.device], GraphBackend]


class Networks(Protocol):
    """Networks that a session computes with."""

    dit: DiT
    vae: VideoVAE
    device: torch.device

    @property
    def decoder(self) -> StreamingDecoder:
        """Decoder of latents: the autoencoder's, or a smaller one."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Conditioning inputs: a portrait loader, the text embedding [T, C], and those of later blocks.

    `fit_masks`: where several characters are; None: there is one.
    """

    fit: FitPortrait
    context_TC: Tensor
    later_contexts: Mapping[int, Tensor] = field(default_factory=dict)
    pose: PosePictures | None = None
    motion: LastFrames | None = None
    """Last frames of a clip that the video goes on from."""
    fit_masks: FitMasks | None = None
    num_characters: int = 1

    def mask(self, geometry: Geometry) -> Tensor | None:
        """Return the tokens of each character [A, S]; None where there is one. Raises InputError."""
        if self.fit_masks is None:
            return None
        return token_mask(self.fit_masks(geometry.height, geometry.width), geometry)


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """The manager of a model's memory, and what it has admitted one session to."""

    manager: MemoryManager
    admission: Admission


class SessionBuilder:
    """One session's executor and decoder: made, moved, made again, released."""

    def __init__(
        self,
        networks: Networks,
        conditioning: Conditioning,
        spec: VideoSpec,
        planned: PlannedMemory | None = None,
        *,
        device_context: DeviceContext,
        make_executor: MakeExecutor = LaneExecutor,
        make_graphs: MakeGraphs | None = None,
    ) -> None:
        """Without `planned` everything is on the device, and nothing gives way.

        `make_graphs` makes what ticks are recorded with, where the plan wants that; None: never.
        """
        self._networks, self._conditioning, self._planned = networks, conditioning, planned
        self._device_context, self._make_executor = device_context, make_executor
        self._make_graphs = make_graphs
        self._spec = spec
        self._output_size = spec.geometry.height, spec.geometry.width
        self._executor: LaneExecutor | None = None
        self._decoder: FrameDecoder | None = None
        self._tiles = (1, 1)
        self._device_lock = threading.RLock() if planned is None else planned.manager.lock
        self.ladder = (
            None if planned is None else make_ladder(planned, self._follow, restart=self.build)
        )

    def open(self, snapshot: SessionSnapshot | None = None) -> SessionParts:
        """Return the parts of the video from its first block on, or from a snapshot.

        Takes fallbacks where even that does not fit. Raises MemoryBudgetError when none is left.
        """
        try:
            return retry_on_oom(
                lambda: self.build(self._plan, snapshot),
                None if self.ladder is None else self._recover_at_start,
            )
        except BaseException:
            self.release()
            raise

    def build(self, plan: Plan | None, snapshot: SessionSnapshot | None) -> SessionParts:
        """Return the parts under a plan, from the snapshot on; the parts in force are released."""
        self._release_parts()
        try:
            return self._build(plan, snapshot)
        except BaseException:
            self._release_parts()
            raise

    def release(self) -> None:
        """Give all memory of the session back. May be called again."""
        self._release_parts()
        if self._planned is not None:
            self._planned.admission.release()

    @property
    def _plan(self) -> Plan | None:
        return None if self._planned is None else self._planned.admission.plan

    def _recover_at_start(self, reason: str, block: int) -> None:
        """Take a fallback; one that would change a video under way changes one that has not begun."""
        assert self.ladder is not None and self._planned is not None
        self._release_parts()
        with suppress(ReplanRequired):
            self.ladder(reason, block)
        self._planned.admission.plan = self.ladder.plan

    def _build(self, plan: Plan | None, snapshot: SessionSnapshot | None) -> SessionParts:
        spec, dit = self._spec, self._networks.dit
        if plan is not None and self._planned is not None:
            self._planned.admission.apply_plan(plan)
            steps, geometry = plan.request.sample_steps, plan.request.geometry
            in_lanes = replace(spec, max_lanes=plan.num_lanes)
            spec = respecified(in_lanes, geometry, dit.config, steps=steps)
            self._tiles = plan.config.tiles
        mask_AS, reference = self._conditioning.mask(spec.geometry), self._encode_reference(spec)
        seen = None if snapshot is None else _adapted(snapshot, spec)
        memory = SessionMemory(
            dit,
            session_shape(spec, seen),
            self._device_context,
            None if plan is None else session_plan(plan),
        )
        try:
            self._executor = self._make_executor(
                dit,
                spec,
                reference,
                self._conditioning.context_TC,
                memory=memory,
                snapshot=seen,
                graphs=self._graphs(plan),
                later_contexts=self._conditioning.later_contexts,
                mask_AS=mask_AS,
            )
        except BaseException:
            memory.release()
            raise
        self._decoder = FrameDecoder(
            self._tiled(self._tiles),
            reference,
            resume_CFHW=None if seen is None else last_latents(seen),
            output_size=self._output_size,
            stream=self._device_context.decode_stream,
        )
        self._spec = spec
        return SessionParts(
            spec,
            self._executor,
            self._decoder,
            seen,
            recovery=self.ladder,
            describe=self._describe,
            release=self.release,
            set_context=self._set_context,
            pose_latents=self._pose_latents(spec),
            device_lock=self._device_lock,
        )

    def _pose_latents(self, spec: VideoSpec) -> Callable[[int], Tensor] | None:
        pictures, networks = self._conditioning.pose, self._networks
        if pictures is None:
            return None
        return PoseEncoder(networks.vae, pictures, spec, device=networks.device).latents

    def _graphs(self, plan: Plan | None) -> TickGraphs | None:
        if self._make_graphs is None or not (plan is None or plan.config.graphs):
            return None
        return TickGraphs(
            self._networks.dit,
            self._make_graphs(self._device_context.device),
            weights_version=self._weights_version,
        )

    def _weights_version(self) -> int | None:
        store = None if self._planned is None else self._planned.manager.store
        return 0 if store is None else store.version

    def _encode_reference(self, spec: VideoSpec) -> ReferenceLatents:
        size, motion = (spec.geometry.height, spec.geometry.width), self._conditioning.motion
        return encode_reference(
            self._networks.vae,
            self._conditioning.fit(*size),
            motion_FHWC=None if motion is None else motion(*size),
            config=self._networks.dit.config,
            encoding=spec.options.reference_encoding,
            device=self._networks.device,
        )

    def _describe(self) -> dict[str, Any]:
        """Return what the session's report says of its memory and of recorded ticks."""
        found: dict[str, Any] = {}
        if self._executor is not None and self._executor.graphs is not None:
            found["graphs"] = self._executor.graphs.document()
        if self._planned is not None and self.ladder is not None:
            plan, taken = self.ladder.plan, self.ladder.document()
            found["memory"] = self._planned.manager.document(plan, taken)
        return found

    def _set_context(self, context_TC: Tensor) -> None:
        """Change the text embedding from the next block on, also for executors that a fallback makes."""
        conditioning, executor = self._conditioning, self._executor
        if executor is None:
            self._conditioning = replace(conditioning, context_TC=context_TC)
            return
        begin = executor.next_block
        later = {b: x for b, x in conditioning.later_contexts.items() if b > begin}
        self._conditioning = replace(
            conditioning,
            context_TC=executor.context_TC,
            later_contexts={begin: context_TC, **later},
        )
        executor.set_context_from(begin, context_TC)

    def _follow(self, plan: Plan) -> None:
        """Move what the session holds to where a plan that keeps the picture wants it."""
        if self._executor is not None:
            self._executor.apply_plan(session_plan(plan))
            if not plan.config.graphs:
                self._executor.graphs = None
        self._retile(plan.config.tiles)

    def _retile(self, tiles: tuple[int, int]) -> None:
        if self._decoder is None or tiles == self._tiles:
            return
        size = self._spec.geometry.latent_height, self._spec.geometry.latent_width
        old, new = self._tiled(self._tiles), self._tiled(tiles)

        def convert(state: DecoderState) -> DecoderState:
            whole = old.whole_state(state, size) if isinstance(old, TiledDecoder) else state
            return new.adopt_state(whole, size) if isinstance(new, TiledDecoder) else whole

        self._decoder.change(new, convert)
        self._tiles = tiles

    def _tiled(self, tiles: tuple[int, int]) -> StreamingDecoder:
        if tiles == (1, 1):
            return self._networks.decoder
        return TiledDecoder(self._networks.decoder, tiles, park=True)

    def _release_parts(self) -> None:
        executor, decoder = self._executor, self._decoder
        self._executor = self._decoder = None
        if decoder is not None:
            decoder.release()
        if executor is not None:
            executor.release()


def make_ladder(
    planned: PlannedMemory,
    follow: Callable[[Plan], None],
    *,
    restart: Callable[[Plan, SessionSnapshot | None], SessionParts] | None = None,
) -> Ladder:
    """Return the recovery of one admitted session, from the plan that it has been admitted with.

    A fallback moves the weights, then calls `follow` to move the rest; blocks in flight go on. Without
    `restart` the ladder has only fallbacks that keep the picture.
    """
    manager, admission = planned.manager, planned.admission

    def move(plan: Plan) -> None:
        if manager.device_context.device.type == "cuda":
            torch.cuda.empty_cache()
        admission.apply_plan(plan)
        follow(plan)

    return Ladder(
        admission.plan,
        [
            found
            for found in manager.fallbacks(admission.plan)
            if found.fallback.keeps_the_picture or restart is not None
        ],
        move=move,
        restart=restart or _cannot_restart,
        used_bytes=manager.used_bytes,
    )


def _cannot_restart(plan: Plan, snapshot: SessionSnapshot | None) -> SessionParts:
    raise AssertionError(f"the fallback keeps the picture: {plan}, {snapshot}")


def last_latents(snapshot: SessionSnapshot) -> Tensor:
    """Return what warms the decoder up before a video goes on: the last clean latents [C, F, H, W]."""
    return torch.cat([block.latent_CFHW for block in snapshot.blocks], dim=1)


def _adapted(snapshot: SessionSnapshot, spec: VideoSpec) -> SessionSnapshot:
    """Return the snapshot as it would look in the size and with the steps of a video."""
    size = spec.geometry.latent_height, spec.geometry.latent_width
    inputs, is_same = snapshot.blocks[-1].inputs, tuple(snapshot.first_C1HW.shape[2:]) == size
    if is_same and len(inputs) in (0, spec.order.num_steps):
        return snapshot
    blocks = tuple(
        BlockSnapshot(
            _fitted(block.latent_CFHW, size),
            block.features_LCV,
            pose_CFHW=None if block.pose_CFHW is None else _fitted(block.pose_CFHW, size),
        )
        for block in snapshot.blocks
    )
    return replace(snapshot, blocks=blocks, first_C1HW=_fitted(snapshot.first_C1HW, size))


def _fitted(latent_CFHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(latent_CFHW.shape[2:]) == size:
        return latent_CFHW
    frames_FCHW = latent_CFHW.transpose(0, 1)
    smaller_FCHW = functional.interpolate(frames_FCHW, size, mode="bilinear", antialias=True)
    return smaller_FCHW.transpose(0, 1)
