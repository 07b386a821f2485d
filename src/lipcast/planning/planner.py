"""The planner: what goes where, before anything is loaded.

Input: a `PlanRequest` (models, geometry, hardware, budget, constraints). Output: the frozen `Plan` with the
least predicted seconds per block under the budget.
Invariants: no plan exceeds its budget; more memory never gives a slower plan; where nothing fits,
MemoryBudgetError names the smallest budget that works (that one works, a byte less does not).
"""

from __future__ import annotations

from dataclasses import replace

from lipcast.config.units import format_bytes
from lipcast.errors import MemoryBudgetError
from lipcast.planning import items, link, sizes
from lipcast.planning.plan import (
    WHOLE,
    Budget,
    EncoderPlacement,
    MemoryItem,
    Placement,
    Plan,
    PlanRequest,
    WorkShare,
    total,
)
from lipcast.planning.search import Candidate, fastest, least_ram, least_vram
from lipcast.planning.workload import residency_order


def make_plan(request: PlanRequest, share: WorkShare = WHOLE) -> Plan:
    """Return the fastest plan under the budget. Raises MemoryBudgetError where nothing fits."""
    candidate = fastest(request, share)
    if candidate is None:
        raise MemoryBudgetError(_refusal(request, share))
    return _finished(candidate)


def _refusal(request: PlanRequest, share: WorkShare) -> str:
    """Say which budget must grow, and to what."""
    geometry, budget = request.geometry, request.budget
    what = f"{geometry.width}x{geometry.height} with a window of {geometry.window} latent frames"
    vram, ram = least_vram(request, share), least_ram(request, share)
    if vram is not None:
        need = f"{_exactly(vram)} of GPU memory beside this host memory"
    elif ram is not None:
        need = f"{_exactly(ram)} of host memory beside this GPU memory"
    else:
        need = _both_needs(request, share)
    has = f"{format_bytes(budget.vram_bytes)} of GPU memory"
    has += f" and {format_bytes(budget.ram_bytes)} of host memory"
    advice = "give more memory, or take a smaller size or infer_frames"
    return f"{what}: expected at least {need}, got {has}; {advice}"


def _both_needs(request: PlanRequest, share: WorkShare) -> str:
    """Say the least GPU memory that works at all, and the host memory that it takes."""
    vram = least_vram(replace(request, budget=Budget(0, 2**62)), share)
    assert vram is not None, "with enough host memory some config works"
    ram = least_ram(replace(request, budget=Budget(vram, 0)), share)
    assert ram is not None, "the least GPU memory works with enough host memory"
    return f"{_exactly(vram)} of GPU memory and {_exactly(ram)} of host memory"


def _exactly(num_bytes: int) -> str:
    return f"{format_bytes(num_bytes)} ({num_bytes} bytes)"


# From the fastest candidate to its plan


def _finished(candidate: Candidate) -> Plan:
    work, constraints = candidate.work, candidate.work.request.constraints
    ram_bytes = work.request.budget.ram_bytes
    streams = candidate.resident < work.num_layers
    speech = _speech_placement(candidate)
    ram_parts = _ram_parts(candidate, speech)
    prompt_weights = MemoryItem(items.PROMPT_WEIGHTS, work.prompt_bytes)
    keeps_prompt = total((*ram_parts, prompt_weights)) <= ram_bytes
    if keeps_prompt:
        ram_parts += (prompt_weights,)
    text = constraints.text_encoder
    if text is None:
        encoder = MemoryItem(items.TEXT_ENCODER, sizes.text_encoder_bytes(work.request.models.text))
        text = "host" if total((*ram_parts, encoder)) <= ram_bytes else "disk"
        ram_parts += (encoder,) if text == "host" else ()
    is_chosen = speech == "device" and constraints.speech_encoder is None
    on_device = work.speech_parts if is_chosen else ()
    return Plan(
        request=work.request,
        share=work.share,
        config=work.config if streams else replace(work.config, num_slots=0),
        layers=_placements(work.num_layers, candidate.resident, candidate.pinned),
        ring_layers=_placements(work.num_layers, candidate.resident_rings, work.num_layers),
        prompt_weights="host" if keeps_prompt else "disk",
        text_encoder=text,
        speech_encoder=speech,
        generate_parts=_nonzero(*work.fixed_parts, *_chosen_parts(candidate), *on_device),
        prepare_parts=_nonzero(
            *work.prepare_fixed_parts, *_weight_parts(candidate), *on_device[:1]
        ),
        ram_parts=_nonzero(*ram_parts),
        to_gpu_parts=_nonzero(
            *link.to_gpu_parts(work, candidate.resident, candidate.resident_rings)
        ),
        to_host_parts=_nonzero(*link.to_host_parts(work, candidate.resident_rings)),
        time=candidate.time,
    )


def _placements(num_layers: int, resident: int, pinned: int) -> tuple[Placement, ...]:
    """Return where each layer lives: the first of the residency order on the GPU, the last on disk."""
    found: list[Placement] = ["disk"] * num_layers
    for rank, layer in enumerate(residency_order(num_layers)):
        if rank < resident:
            found[layer] = "resident"
        elif rank < resident + pinned:
            found[layer] = "pinned"
    return tuple(found)


def _weight_parts(candidate: Candidate) -> tuple[MemoryItem, ...]:
    work, resident = candidate.work, candidate.resident
    slots = work.slot_bytes(resident)
    return (
        MemoryItem(items.LAYERS, work.weights_bytes(resident) - slots),
        MemoryItem(items.LAYER_SLOTS, slots),
    )


def _chosen_parts(candidate: Candidate) -> tuple[MemoryItem, ...]:
    work, rings = candidate.work, candidate.resident_rings
    resident = rings * work.rings_layer_bytes
    return (
        *_weight_parts(candidate),
        MemoryItem(items.RINGS, resident),
        MemoryItem(items.RING_SLOTS, work.rings_bytes(rings) - resident),
    )


def _ram_parts(candidate: Candidate, speech: EncoderPlacement) -> tuple[MemoryItem, ...]:
    work, totals = candidate.work, candidate.work.layers_total
    last = candidate.resident + candidate.pinned
    staging = work.staging_bytes if last < work.num_layers else 0
    return (
        *(p for p in work.fixed_ram_parts if speech == "host" or p not in work.speech_parts),
        MemoryItem(items.PINNED_LAYERS, totals[last] - totals[candidate.resident]),
        MemoryItem(items.STAGING, staging),
        MemoryItem(items.PINNED_RINGS, work.pinned_rings_bytes(candidate.resident_rings)),
    )


def _speech_placement(candidate: Candidate) -> EncoderPlacement:
    """Return where the encoder is; where that is open, the GPU if nothing else needs the memory."""
    work = candidate.work
    if work.request.constraints.speech_encoder is not None:
        return work.request.constraints.speech_encoder
    generate = work.fixed_bytes + total(_chosen_parts(candidate))
    prepare = work.prepare_fixed_bytes + total(_weight_parts(candidate))
    peak = max(generate, prepare) + total(work.speech_parts)
    fits = work.share.decodes and peak <= work.request.budget.vram_bytes
    return "device" if fits else "host"


def _nonzero(*parts: MemoryItem) -> tuple[MemoryItem, ...]:
    return tuple(part for part in parts if part.num_bytes)
