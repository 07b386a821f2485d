"""Replay whole ticks: one launch where Python would launch a thousand kernels.

Input: the lanes of a tick. Output: their velocities, bit for bit those of the model. A recording holds
addresses and the numbers that Python computed, so whatever changes from tick to tick is either copied into
tensors that stay (latents, positions, audio tokens), or part of the key (steps, and where the blocks lie
in their rings); and a recording is used only while every other tensor is where it was recorded. The first
tick of a key runs as it is, which compiles kernels and finds plans; the second is recorded.
State: tensors that stay, one set per block in flight, and recordings by key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lipcast.env import logger
from lipcast.memory.graphs import CaptureError, GraphBackend, Recording
from lipcast.models.audio import AudioConditioning, InjectorInput
from lipcast.models.dit import DiT, Lane
from lipcast.models.rope import RotaryTable
from lipcast.planning.graphs import MAX_GRAPHS

_log = logger("engine.tick_graphs")

LaneKey = tuple[int, int]
"""(step, number of the set of tensors that stay)."""
TickKey = tuple[tuple[int, int, int], ...]
"""Of every lane: step, set, position of its first frame in the ring, which is full."""


class _Inputs:
    """Tensors that stay, for one of the blocks in flight at a time."""

    def __init__(self, lane: Lane) -> None:
        conditions = lane.conditions
        self._latent_CFHW = torch.empty_like(lane.latent_CFHW)
        self._rotary = RotaryTable(*map(torch.empty_like, _tables(conditions.rotary)))
        self._audio = _empty_like(conditions.audio)
        pose_FSD = conditions.pose_FSD
        self._pose_FSD = None if pose_FSD is None else torch.empty_like(pose_FSD)
        self._holds: tuple[RotaryTable, AudioConditioning] | None = None

    def filled(self, lane: Lane) -> Lane:
        """Return the lane with its inputs in these tensors."""
        conditions = lane.conditions
        self._latent_CFHW.copy_(lane.latent_CFHW)
        if self._holds is None or not (
            self._holds[0] is conditions.rotary and self._holds[1] is conditions.audio
        ):
            self._holds = None  # stays so if a copy fails
            _copy(_tables(self._rotary), _tables(conditions.rotary))
            _copy(_audio_tensors(self._audio), _audio_tensors(conditions.audio))
            _copy(_one_or_none(self._pose_FSD), _one_or_none(conditions.pose_FSD))
            self._holds = conditions.rotary, conditions.audio
        staying = replace(
            conditions, rotary=self._rotary, audio=self._audio, pose_FSD=self._pose_FSD
        )
        return replace(lane, latent_CFHW=self._latent_CFHW, conditions=staying)


@dataclass(slots=True)
class _Tick:
    """What is known of a key."""

    addresses: tuple[int, ...]
    recording: Recording | None = None


class TickGraphs:
    """The recorded ticks of one session."""

    def __init__(
        self,
        model: DiT,
        backend: GraphBackend,
        *,
        weights_version: Callable[[], int | None],
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        """`weights_version` changes whenever weights move; None while some of them are streamed."""
        self._model, self._backend = model, backend
        self._weights_version, self._version = weights_version, weights_version()
        self._max_graphs = max_graphs
        self._inputs: dict[int, _Inputs] = {}
        self._ticks: dict[TickKey, _Tick] = {}
        self.num_replayed = 0
        """Ticks that were replayed."""
        self.refusal = ""
        """Why nothing is recorded any more; empty while recording works."""

    @property
    def num_recorded(self) -> int:
        """Recordings that are held."""
        return sum(tick.recording is not None for tick in self._ticks.values())

    def run(self, lanes: Sequence[Lane], lane_keys: Sequence[LaneKey]) -> Sequence[Tensor]:
        """Return the velocities of the lanes, which last until the next call."""
        self._follow_weights()
        key = _key(lanes, lane_keys)
        if self.refusal or self._version is None or key is None:
            return self._launched(lanes)
        lanes = [self._staying(lane, of) for lane, (_, of) in zip(lanes, lane_keys, strict=True)]
        addresses = tuple(map(Tensor.data_ptr, _tensors(lanes)))
        tick = self._ticks.get(key)
        if tick is None or tick.addresses != addresses:
            self._ticks[key] = _Tick(addresses)
            return self._launched(lanes)
        if tick.recording is None and self.num_recorded < self._max_graphs:
            tick.recording = self._record(lanes)
        if tick.recording is None:
            return self._launched(lanes)
        self.num_replayed += 1
        return tick.recording.replay()

    def drop(self) -> None:
        """Forget everything that was recorded, and free its memory: what it refers to will move."""
        self._ticks.clear()
        self._inputs.clear()
        self._backend.release()

    def document(self) -> dict[str, Any]:
        """Return what was recorded and replayed, as plain values."""
        return {
            "recorded": self.num_recorded,
            "replayed": self.num_replayed,
            "refusal": self.refusal,
        }

    def _launched(self, lanes: Sequence[Lane]) -> Sequence[Tensor]:
        velocities: list[Tensor] = self._model(lanes)
        return velocities

    def _follow_weights(self) -> None:
        version = self._weights_version()
        if version != self._version:
            self._version = version
            self.drop()

    def _staying(self, lane: Lane, number: int) -> Lane:
        if number not in self._inputs:
            self._inputs[number] = _Inputs(lane)
        return self._inputs[number].filled(lane)

    def _record(self, lanes: Sequence[Lane]) -> Recording | None:
        try:
            return self._backend.record(partial(self._launched, lanes))
        except CaptureError as error:
            self.refusal = str(error)
        self.drop()
        _log.warning(
            "ticks cannot be recorded as CUDA graphs (%s); they are launched kernel by kernel from "
            "now on, which takes more of the host's time",
            self.refusal,
        )
        return None


def _key(lanes: Sequence[Lane], lane_keys: Sequence[LaneKey]) -> TickKey | None:
    """Return everything that Python computes of a tick; None where it is not worth a recording.

    A ring that is not full has another length in every block.
    """
    found = []
    for lane, (step, number) in zip(lanes, lane_keys, strict=True):
        conditions, frames = lane.conditions, lane.latent_CFHW.shape[1]
        position, filled = lane.ring.span(conditions.first_frame, frames)
        if filled < lane.ring.window or conditions.sink.ref_keys_LSNd is None:
            return None
        found.append((step, number, position))
    return tuple(found)


def _tensors(lanes: Sequence[Lane]) -> list[Tensor]:
    """Return every tensor that a tick reads beside weights, rings and the sink."""
    found: list[Tensor] = []
    for lane in lanes:
        conditions = lane.conditions
        found += [lane.latent_CFHW, lane.time.head_D, lane.time.block_6D]
        found += _tables(conditions.rotary) + _audio_tensors(conditions.audio)
        found += _one_or_none(conditions.pose_FSD)
        found += [x for keys_values in conditions.text for x in keys_values]
        if conditions.sink.ref_keys_LSNd is not None:
            found.append(conditions.sink.ref_keys_LSNd)
    return found


def _one_or_none(x: Tensor | None) -> list[Tensor]:
    return [] if x is None else [x]


def _tables(rotary: RotaryTable) -> list[Tensor]:
    return [rotary.cos_TP, rotary.sin_TP]


def _audio_tensors(audio: AudioConditioning) -> list[Tensor]:
    masks = [] if audio.mask_AFS is None else [audio.mask_AFS]
    return [x for given in audio.injectors for x in _injected(given)] + masks


def _injected(given: InjectorInput) -> list[Tensor]:
    return [given.shift_AFD, given.scale_AFD, given.keys_AFKNd, given.values_AFKNd]


def _empty_like(audio: AudioConditioning) -> AudioConditioning:
    injectors = (InjectorInput(*map(torch.empty_like, _injected(x))) for x in audio.injectors)
    mask = None if audio.mask_AFS is None else torch.empty_like(audio.mask_AFS)
    return AudioConditioning(tuple(injectors), mask)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
