"""The owner of one loaded model's memory: it plans sessions, admits them, and gets their memory back.

Input: a device context, `PlannerInputs`. Output: an `Admission` per session, and weights loaded where the
plan puts them. State: the weight store, and the plans of the sessions that are open. Invariant: what the
plans of all open sessions take together, and the weights once, is within the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.geometry import SIZE_MULTIPLE, Geometry
from lipcast.config.units import format_bytes
from lipcast.env import logger
from lipcast.errors import AdmissionError, MemoryBudgetError
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.session_memory import SessionPlan
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.planning import items
from lipcast.planning.fallbacks import FallbackPlan, ladder
from lipcast.planning.inputs import PlannerInputs, allowed_fallbacks
from lipcast.planning.plan import Budget, MemoryItem, Plan, PlanRequest
from lipcast.planning.planner import make_plan
from lipcast.planning.table import plan_document
from lipcast.weights.load import load_into
from lipcast.weights.source import TensorSource

_log = logger("memory.manager")


class Admission:
    """One session's right to memory: its plan, until it is released."""

    def __init__(self, manager: MemoryManager, plan: Plan) -> None:
        self.plan = plan
        self._manager = manager

    def apply_plan(self, plan: Plan) -> None:
        """Put another plan of this session in force, and move the weights to where it wants them.

        Raises torch.OutOfMemoryError where there is no room; the call may be made again.
        """
        before, self.plan = self.plan, plan
        try:
            self._manager.place_weights()
        except BaseException:
            self.plan = before
            raise

    def release(self) -> None:
        """Give the session's share of the budget back. May be called again."""
        self._manager.dismiss(self)


class MemoryManager:
    """One per loaded model and device."""

    def __init__(self, device_context: DeviceContext, inputs: PlannerInputs) -> None:
        self.device_context, self.inputs = device_context, inputs
        self.store: WeightStore | None = None
        self.lock = threading.RLock()
        """Held while anything of this model computes or moves: sessions may live in several threads."""
        self._admissions: list[Admission] = []

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return len(self._admissions)

    def plan(
        self, geometry: Geometry, options: GenerateOptions, *, num_characters: int = 1
    ) -> Plan:
        """Return the plan of a video that has the machine to itself. Raises MemoryBudgetError."""
        request = self.inputs.request(geometry, options, num_characters=num_characters)
        return make_plan(request, self.inputs.share)

    def admit(
        self, geometry: Geometry, options: GenerateOptions, *, num_characters: int = 1
    ) -> Admission:
        """Plan a session beside those that are open, and reserve what it needs.

        Raises MemoryBudgetError where it does not fit the machine at all, AdmissionError where it would
        fit once other sessions are closed.
        """
        with self.lock:
            request = self.inputs.request(geometry, options, num_characters=num_characters)
            try:
                plan = self._plan_beside(self._admissions, request)
            except MemoryBudgetError as error:
                if not self._admissions:
                    raise
                raise AdmissionError(self._refusal(request)) from error
            admission = Admission(self, plan)
            self._admissions.append(admission)
            return admission

    def dismiss(self, admission: Admission) -> None:
        """Forget an admission; the weights stay where they are until the next plan.

        If its last plan could not be applied, the weights are placed for the sessions that are left.
        """
        with self.lock:
            if admission in self._admissions:
                self._admissions.remove(admission)
            if self._admissions and self.store is not None and self.store.plan is None:
                self.place_weights()

    def _plan_beside(self, others: Collection[Admission], request: PlanRequest) -> Plan:
        budget = Budget(
            request.budget.vram_bytes - sum(own_bytes(a.plan.generate_parts) for a in others),
            request.budget.ram_bytes - sum(own_bytes(a.plan.ram_parts) for a in others),
        )
        return make_plan(replace(request, budget=budget), self.inputs.share)

    def _refusal(self, request: PlanRequest) -> str:
        """Say how many of the open sessions would have to be closed."""
        held = sorted(self._admissions, key=lambda a: own_bytes(a.plan.generate_parts))
        total = sum(own_bytes(a.plan.generate_parts) for a in held)
        for count in range(1, len(held) + 1):
            try:
                self._plan_beside(held[: len(held) - count], request)
            except MemoryBudgetError:
                continue
            one = count == 1
            return (
                f"this session does not fit beside the {len(held)} open on this model, which hold "
                f"{format_bytes(total)} of GPU memory; it fits once {count} of them "
                f"{'is' if one else 'are'} closed, or with a smaller size or infer_frames"
            )
        make_plan(request, self.inputs.share)  # raises what the planner says of it alone
        raise AssertionError("a session that fits alone fits once all others are closed")

    def first_plan(self, geometry: Geometry) -> Plan:
        """Return where weights go before a video is known: for this geometry, or else the smallest.

        Every session then moves them to where its own plan wants them.
        """
        try:
            return self.plan(geometry, GenerateOptions())
        except MemoryBudgetError:
            dit, vae = self.inputs.models.dit, self.inputs.models.vae
            least = Geometry.of(
                dit,
                vae,
                height=SIZE_MULTIPLE,
                width=SIZE_MULTIPLE,
                infer_frames=dit.latents_per_block * vae.temporal_factor,
            )
            return self.plan(least, GenerateOptions())

    def load(self, model: DiT, source: TensorSource, *, plan: Plan, dtype: torch.dtype) -> None:
        """Fill a model that was built without memory; its layers go where the plan puts them.

        Keeps nothing if it raises: torch.OutOfMemoryError, CheckpointError.
        """
        self.store = WeightStore(
            source,
            weight_plan(plan),
            dtype=dtype,
            device=self.device_context.vram,
            host=self.device_context.ram,
            copier=self.device_context.copier,
        )
        try:
            load_into(
                model,
                source,
                dtype=dtype,
                device=self.device_context.device,
                place=self.store.place,
            )
            self.store.attach(model)
        except BaseException:
            self.store.release()
            self.store = None
            raise
        self.inputs = replace(
            self.inputs, precision=plan.config.precision, speech_encoder=plan.speech_encoder
        )

    def place_weights(self) -> None:
        """Move the weights to where the plan with the fewest layers on the GPU wants them."""
        assert self.store is not None, "the weights are not loaded"
        with self.lock:
            plans = [admission.plan for admission in self._admissions]
            wanted = weight_plan(min(plans, key=lambda plan: plan.resident_layers))
            if wanted != self.store.plan:
                self.store.apply_plan(wanted)

    def fallbacks(self, plan: Plan) -> tuple[FallbackPlan, ...]:
        """Return the fallbacks below this plan, in order."""
        return ladder(plan, allowed_fallbacks(self.inputs.options, plan.request))

    def used_bytes(self) -> int:
        """Return the bytes taken on the device now."""
        device = self.device_context.device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        return self.device_context.vram.used_bytes

    def document(self, plan: Plan, fallbacks: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plan in force, what was predicted and what is taken, and the fallbacks taken."""
        vram, ram = self.device_context.vram, self.device_context.ram
        measured: dict[str, Any] = {
            "vram_parts_bytes": vram.parts,
            "vram_peak_bytes": vram.peak_bytes,
            "ram_parts_bytes": ram.parts,
            "ram_peak_bytes": ram.peak_bytes,
        }
        device = self.device_context.device
        if device.type == "cuda":
            measured["allocated_peak_bytes"] = torch.cuda.max_memory_allocated(device)
            measured["reserved_peak_bytes"] = torch.cuda.max_memory_reserved(device)
            free, total = torch.cuda.mem_get_info(device)
            measured["device_used_bytes"] = total - free
        return {"plan": plan_document(plan), "measured": measured, "fallbacks": dict(fallbacks)}


def own_bytes(planned: Collection[MemoryItem]) -> int:
    """Return what a session has for itself, beside what all sessions of the model share."""
    return sum(item.num_bytes for item in planned if item.name not in items.SHARED)


def weight_plan(plan: Plan) -> WeightPlan:
    """Return the weights' part of a plan."""
    keeps_prompt = plan.prompt_weights == "host"
    return WeightPlan(plan.layers, plan.config.num_slots, keeps_prompt=keeps_prompt)


def session_plan(plan: Plan) -> SessionPlan:
    """Return a session's part of a plan."""
    config = plan.config
    return SessionPlan(plan.ring_layers, config.kv_precision, config.sink_streamed)
