"""From a portrait, a prompt and options to everything that a session runs on.

Input: a loaded model, pixels by size, the prompt's context, options; a steward where memory is planned.
Output: spec, executor, decoder and recovery of a new video, or of one that goes on from its past.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipcast.config.video_spec import VideoSpec, respecified
from lipcast.engine.conditioning import ReferenceLatents, encode_reference
from lipcast.engine.decode import FrameDecoder, StreamingDecoder
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.engine.fallback import Ladder
from lipcast.engine.memory_manager import MemoryManager, session_plan
from lipcast.engine.session import ReplanRequired, SessionParts
from lipcast.engine.snapshot import BlockSnapshot, SessionSnapshot
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.memory.session_memory import SessionMemory
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState
from lipcast.planning.plan import Plan

FitPortrait = Callable[[int, int], NDArray[np.uint8]]
"""(height, width) -> pixels RGB [height, width, 3]."""


class Networks(Protocol):
    """What a session computes with."""

    dit: DiT
    vae: VideoVAE
    device: torch.device

    @property
    def decoder(self) -> StreamingDecoder:
        """What makes frames of latents: the autoencoder, or a smaller one."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Who speaks, and what was said about it."""

    fit: FitPortrait
    context_TC: Tensor


class SessionBuilder:
    """One video whose memory a steward keeps. Makes its parts, at first and after every rung."""

    def __init__(
        self,
        networks: Networks,
        conditioning: Conditioning,
        spec: VideoSpec,
        plan: Plan,
        memory_manager: MemoryManager,
    ) -> None:
        self._networks, self._conditioning, self._memory_manager = (
            networks,
            conditioning,
            memory_manager,
        )
        self._spec = spec
        self._output_size = spec.geometry.height, spec.geometry.width
        self._executor: LaneExecutor | None = None
        self._decoder: FrameDecoder | None = None
        self._tiles = plan.config.tiles
        self.ladder = Ladder(
            plan,
            memory_manager.fallbacks(plan),
            move=self._move,
            restart=self.go_on,
            used_bytes=memory_manager.used_bytes,
        )

    def begin(self, snapshot: SessionSnapshot | None = None) -> SessionParts:
        """The parts of the video from its first block on, or from a past.

        Takes rungs if even that does not fit.
        """
        while True:
            try:
                return self.go_on(self.ladder.plan, snapshot)
            except torch.OutOfMemoryError as error:
                self._give_up_parts()
                # A rung that would change a video under way changes one that has not begun.
                with suppress(ReplanRequired):
                    self.ladder(error, 0)

    def go_on(self, plan: Plan, snapshot: SessionSnapshot | None) -> SessionParts:
        """The parts under a plan, from the past on."""
        self._give_up_parts()
        self._memory_manager.apply_plan(plan)
        networks, dit = self._networks, self._networks.dit
        spec = respecified(
            self._spec, plan.request.geometry, dit.config, steps=plan.request.sample_steps
        )
        anchor = encode_conditioning(networks, self._conditioning, spec)
        seen = None if snapshot is None else _adapted(snapshot, spec)
        memory = SessionMemory(
            dit, session_shape(spec, seen), self._memory_manager.device_context, session_plan(plan)
        )
        self._executor = LaneExecutor(
            dit, spec, anchor, self._conditioning.context_TC, memory=memory, snapshot=seen
        )
        self._tiles = plan.config.tiles
        self._decoder = FrameDecoder(
            self._tiled(self._tiles),
            anchor,
            resume_CFHW=None if seen is None else last_latents(seen),
            output_size=self._output_size,
        )
        self._spec = spec
        return SessionParts(spec, self._executor, self._decoder, seen)

    def _move(self, plan: Plan) -> None:
        """Bring about a plan that keeps the picture; blocks in flight go on."""
        if self._networks.device.type == "cuda":
            torch.cuda.empty_cache()
        self._memory_manager.apply_plan(plan)
        if self._executor is not None:
            self._executor.apply_plan(session_plan(plan))
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

    def _give_up_parts(self) -> None:
        if self._executor is not None:
            self._executor.release()
        if self._decoder is not None:
            self._decoder.release()
        self._executor = self._decoder = None


def encode_conditioning(
    networks: Networks, conditioning: Conditioning, spec: VideoSpec
) -> ReferenceLatents:
    """The portrait's latents in the size of a video."""
    return encode_reference(
        networks.vae,
        conditioning.fit(spec.geometry.height, spec.geometry.width),
        config=networks.dit.config,
        encoding=spec.options.anchor,
        device=networks.device,
    )


def last_latents(snapshot: SessionSnapshot) -> Tensor:
    """What warms the decoder up before a video goes on: the last clean latents [C, F, H, W]."""
    return torch.cat([block.latent_CFHW for block in snapshot.blocks], dim=1)


def _adapted(snapshot: SessionSnapshot, spec: VideoSpec) -> SessionSnapshot:
    """The past as it would look in the size and with the steps of a video."""
    size = spec.geometry.latent_height, spec.geometry.latent_width
    inputs, is_same = snapshot.blocks[-1].inputs, tuple(snapshot.first_C1HW.shape[2:]) == size
    if is_same and len(inputs) in (0, spec.order.num_steps):
        return snapshot
    blocks = tuple(
        BlockSnapshot(_fitted(block.latent_CFHW, size), block.features_LCV)
        for block in snapshot.blocks
    )
    return replace(snapshot, blocks=blocks, first_C1HW=_fitted(snapshot.first_C1HW, size))


def _fitted(latent_CFHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(latent_CFHW.shape[2:]) == size:
        return latent_CFHW
    frames_FCHW = latent_CFHW.transpose(0, 1)
    smaller_FCHW = functional.interpolate(frames_FCHW, size, mode="bilinear", antialias=True)
    return smaller_FCHW.transpose(0, 1)
