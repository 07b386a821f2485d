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

from lipcast.core.plan_types import Plan
from lipcast.core.video_spec import VideoSpec, respecified
from lipcast.engine.conditions import Anchor, encode_anchor
from lipcast.engine.decode import FrameDecoder, StreamingDecoder
from lipcast.engine.ladder import Ladder
from lipcast.engine.past import Past, PastBlock
from lipcast.engine.rollout import LaneExecutor, session_shape
from lipcast.engine.session import Continuation, Restart
from lipcast.engine.steward import Steward, session_plan
from lipcast.engine.tiled_decode import TiledDecoder
from lipcast.memory.session_memory import SessionMemory
from lipcast.models.dit import DiT
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_blocks import DecoderState

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
class Subject:
    """Who speaks, and what was said about it."""

    fit: FitPortrait
    context_TC: Tensor


class PlannedVideo:
    """One video whose memory a steward keeps. Makes its parts, at first and after every rung."""

    def __init__(
        self, networks: Networks, subject: Subject, spec: VideoSpec, plan: Plan, steward: Steward
    ) -> None:
        self._networks, self._subject, self._steward = networks, subject, steward
        self._spec = spec
        self._output_size = spec.geometry.height, spec.geometry.width
        self._executor: LaneExecutor | None = None
        self._decoder: FrameDecoder | None = None
        self._tiles = plan.choice.tiles
        self.ladder = Ladder(
            plan,
            steward.rungs(plan),
            move=self._move,
            restart=self.go_on,
            used_bytes=steward.used_bytes,
        )

    def begin(self, past: Past | None = None) -> Continuation:
        """The parts of the video from its first block on, or from a past.

        Takes rungs if even that does not fit.
        """
        while True:
            try:
                return self.go_on(self.ladder.plan, past)
            except torch.OutOfMemoryError as error:
                self._give_up_parts()
                # A rung that would change a video under way changes one that has not begun.
                with suppress(Restart):
                    self.ladder(error, 0)

    def go_on(self, plan: Plan, past: Past | None) -> Continuation:
        """The parts under a plan, from the past on."""
        self._give_up_parts()
        self._steward.arrange(plan)
        networks, dit = self._networks, self._networks.dit
        spec = respecified(
            self._spec, plan.request.geometry, dit.config, steps=plan.request.sample_steps
        )
        anchor = encode_subject(networks, self._subject, spec)
        seen = None if past is None else _adapted(past, spec)
        memory = SessionMemory(
            dit, session_shape(spec, seen), self._steward.machine, session_plan(plan)
        )
        self._executor = LaneExecutor(
            dit, spec, anchor, self._subject.context_TC, memory=memory, past=seen
        )
        self._tiles = plan.choice.tiles
        self._decoder = FrameDecoder(
            self._tiled(self._tiles),
            anchor,
            past_CFHW=None if seen is None else last_latents(seen),
            output_size=self._output_size,
        )
        self._spec = spec
        return Continuation(spec, self._executor, self._decoder, seen)

    def _move(self, plan: Plan) -> None:
        """Bring about a plan that keeps the picture; blocks in flight go on."""
        if self._networks.device.type == "cuda":
            torch.cuda.empty_cache()
        self._steward.arrange(plan)
        if self._executor is not None:
            self._executor.arrange(session_plan(plan))
        self._retile(plan.choice.tiles)

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


def encode_subject(networks: Networks, subject: Subject, spec: VideoSpec) -> Anchor:
    """The portrait's latents in the size of a video."""
    return encode_anchor(
        networks.vae,
        subject.fit(spec.geometry.height, spec.geometry.width),
        config=networks.dit.config,
        encoding=spec.options.anchor,
        device=networks.device,
    )


def last_latents(past: Past) -> Tensor:
    """What warms the decoder up before a video goes on: the last clean latents [C, F, H, W]."""
    return torch.cat([block.latent_CFHW for block in past.blocks], dim=1)


def _adapted(past: Past, spec: VideoSpec) -> Past:
    """The past as it would look in the size and with the steps of a video."""
    size = spec.geometry.latent_height, spec.geometry.latent_width
    inputs, is_same = past.blocks[-1].inputs, tuple(past.first_C1HW.shape[2:]) == size
    if is_same and len(inputs) in (0, spec.order.num_steps):
        return past
    blocks = tuple(
        PastBlock(_fitted(block.latent_CFHW, size), block.voice_LCV) for block in past.blocks
    )
    return replace(past, blocks=blocks, first_C1HW=_fitted(past.first_C1HW, size))


def _fitted(latent_CFHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(latent_CFHW.shape[2:]) == size:
        return latent_CFHW
    frames_FCHW = latent_CFHW.transpose(0, 1)
    smaller_FCHW = functional.interpolate(frames_FCHW, size, mode="bilinear", antialias=True)
    return smaller_FCHW.transpose(0, 1)
