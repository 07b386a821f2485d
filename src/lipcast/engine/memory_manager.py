"""Keeps the memory of one loaded model as a plan says, and makes the parts of a session in it.

Input: a machine, its rates, a budget, the user's options. Output: plans, and weights loaded where a plan
puts them. State: the weight store. Sessions of one model share its weights: the last plan decides where
they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.geometry import SIZE_MULTIPLE, Geometry
from lipcast.engine.fallback import Ladder
from lipcast.env import logger
from lipcast.errors import MemoryBudgetError
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.session_memory import SessionPlan
from lipcast.memory.weight_store import WeightPlan, WeightStore
from lipcast.models.dit import DiT
from lipcast.planning.fallbacks import FallbackPlan, ladder
from lipcast.planning.hardware import Hardware
from lipcast.planning.memory_options import MemoryOptions
from lipcast.planning.plan import Budget, Models, Plan, PlanRequest, Share
from lipcast.planning.planner import make_plan
from lipcast.planning.sizes import Precision
from lipcast.planning.table import plan_document
from lipcast.weights.load import load_into
from lipcast.weights.source import TensorSource

_log = logger("engine.steward")


@dataclass(frozen=True, slots=True)
class PlannerInputs:
    """What plans of one model are made from."""

    hardware: Hardware
    budget: Budget
    options: MemoryOptions
    models: Models
    precision: Precision | None
    """None: the planner's choice, until the weights are loaded."""
    share: Share = field(default_factory=Share)
    """What this device does of the work."""

    def request(self, geometry: Geometry, options: GenerateOptions) -> PlanRequest:
        """What the planner is asked for a video."""
        return PlanRequest(
            geometry=geometry,
            hardware=self.hardware,
            budget=self.budget,
            models=self.models,
            constraints=self.options.constraints(self.precision, options.schedule),
            sample_steps=options.sample_steps or self.models.dit.sample_steps,
            fold_last_step=options.fold_last_step,
        )


class MemoryManager:
    """One per loaded model."""

    def __init__(self, device_context: DeviceContext, terms: PlannerInputs) -> None:
        self.device_context, self.terms = device_context, terms
        self.store: WeightStore | None = None

    def plan(self, geometry: Geometry, options: GenerateOptions) -> Plan:
        """Where everything goes for a video. Raises MemoryBudgetError where nothing fits."""
        return make_plan(self.terms.request(geometry, options), self.terms.share)

    def first_plan(self, geometry: Geometry) -> Plan:
        """Where weights go before a video is known: for this one, or the smallest if that does not fit.

        Every video then moves them to where its own plan wants them.
        """
        try:
            return self.plan(geometry, GenerateOptions())
        except MemoryBudgetError:
            dit, vae = self.terms.models.dit, self.terms.models.vae
            least = Geometry.of(
                dit,
                vae,
                height=SIZE_MULTIPLE,
                width=SIZE_MULTIPLE,
                infer_frames=dit.latents_per_block * vae.temporal_factor,
            )
            return self.plan(least, GenerateOptions())

    def load(self, model: DiT, source: TensorSource, *, plan: Plan, dtype: torch.dtype) -> None:
        """Fill a model that was built without memory; its layers go where the plan puts them."""
        self.store = WeightStore(
            source,
            weight_plan(plan),
            dtype=dtype,
            device=self.device_context.vram,
            host=self.device_context.ram,
            copier=self.device_context.copier,
        )
        load_into(
            model, source, dtype=dtype, device=self.device_context.device, place=self.store.place
        )
        self.store.attach(model)
        self.terms = replace(self.terms, precision=plan.config.precision)

    def apply_plan(self, plan: Plan) -> None:
        """Move the weights to where this plan puts them."""
        assert self.store is not None, "the weights are not loaded"
        wanted = weight_plan(plan)
        if wanted != self.store.plan:
            self.store.apply_plan(wanted)

    def fallbacks(self, plan: Plan) -> tuple[FallbackPlan, ...]:
        """What may give way under this plan, in order."""
        return ladder(plan, self.terms.options.fallbacks(plan.request))

    def used_bytes(self) -> int:
        """Bytes taken on the device now."""
        device = self.device_context.device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        return self.device_context.vram.used_bytes

    def document(self, fallbacks: Ladder) -> dict[str, Any]:
        """The plan in force, what was predicted and what is taken, and the rungs taken."""
        plan, vram, ram = fallbacks.plan, self.device_context.vram, self.device_context.ram
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
        return {
            "plan": plan_document(plan), "measured": measured, "fallbacks": fallbacks.document(),
        }  # fmt: skip


def weight_plan(plan: Plan) -> WeightPlan:
    """The weights' share of a plan."""
    keeps_prompt = plan.prompt_weights == "host"
    return WeightPlan(plan.layers, plan.config.num_slots, keeps_prompt=keeps_prompt)


def session_plan(plan: Plan) -> SessionPlan:
    """A session's share of a plan."""
    choice = plan.config
    return SessionPlan(plan.ring_layers, choice.ring_precision, choice.sink_streamed)
