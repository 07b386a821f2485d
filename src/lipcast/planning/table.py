"""A plan as plain values: for JSON documents, result files and the tables of the command line.

Inputs: a Plan, alternatives, a ladder, layouts. Outputs: dicts of numbers, words and lists only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lipcast.planning.fallbacks import Alternative, FallbackPlan
from lipcast.planning.layouts import LayoutPlan, RankPlan
from lipcast.planning.plan import MemoryItem, Placement, Plan
from lipcast.planning.start import start_document

_DIGITS = 4


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return everything that a plan decides and predicts."""
    request, config = plan.request, plan.config
    return {
        "hardware": request.hardware.name,
        "rates": request.hardware.source,
        "budget": {"vram_bytes": request.budget.vram_bytes, "ram_bytes": request.budget.ram_bytes},
        "video": {
            "height": request.geometry.height,
            "width": request.geometry.width,
            "window_latent_frames": request.geometry.window,
            "tokens_per_frame": request.geometry.tokens_per_frame,
            "evaluations_per_block": request.num_evaluations,
            "fold_last_step": request.fold_last_step,
        },
        "precision": config.precision,
        "kv_precision": config.kv_precision,
        "schedule": config.schedule,
        "lanes": plan.num_lanes,
        "layers": list(plan.layers),
        "layer_slots": config.num_slots,
        "ring_layers": list(plan.ring_layers),
        "sink": "pinned" if config.sink_streamed else "resident",
        "decoder_tiles": list(config.tiles),
        "cuda_graphs": config.graphs,
        "text_encoder": plan.text_encoder,
        "speech_encoder": plan.speech_encoder,
        "vram": {
            "generate": _parts(plan.generate_parts),
            "prepare": _parts(plan.prepare_parts),
            "peak_bytes": plan.vram_bytes,
        },
        "ram": {"parts": _parts(plan.ram_parts), "bytes": plan.ram_bytes},
        "link_bytes_per_block": {
            "to_gpu": _parts(plan.to_gpu_parts),
            "to_host": _parts(plan.to_host_parts),
        },
        "seconds_per_block": seconds(plan),
        "frames_per_s": round(plan.frames_per_s, 2),
        "first_block_s": round(plan.first_block_s, _DIGITS),
        "bottleneck": plan.time.bottleneck,
        "start": start_document(plan),
    }


def _parts(parts: Sequence[MemoryItem]) -> dict[str, int]:
    return {part.name: part.num_bytes for part in parts}


def seconds(plan: Plan) -> dict[str, float]:
    """Return the seconds per block by stream, what overlap hides, and the whole."""
    time = plan.time
    return {
        "compute": round(time.compute_s, _DIGITS),
        "decode": round(time.decode_s, _DIGITS),
        "copies": round(time.copy_s, _DIGITS),
        "disk": round(time.disk_s, _DIGITS),
        "other GPUs": round(time.peer_s, _DIGITS),
        "hidden by overlap": round(time.hidden_s, _DIGITS),
        "block": round(time.block_s, _DIGITS),
    }


def places(placements: Sequence[Placement]) -> str:
    """Return how many layers live where: "26 on the GPU, 14 pinned"."""
    counts = Counter[str](placements)
    words = {"resident": "on the GPU", "pinned": "pinned", "disk": "on disk"}
    return ", ".join(f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind])


def alternative_document(alternative: Alternative) -> dict[str, Any]:
    """Return another choice's bytes and seconds, or the bytes that it needs."""
    plan = alternative.plan
    if plan is None:
        return {"name": alternative.name, "needs_vram_bytes": alternative.needed_vram_bytes}
    return {
        "name": alternative.name,
        "vram_bytes": plan.vram_bytes,
        "ram_bytes": plan.ram_bytes,
        "block_s": plan.time.block_s,
        "frames_per_s": round(plan.frames_per_s, 2),
    }


def fallback_document(fallback: FallbackPlan) -> dict[str, Any]:
    """Return a fallback's bytes before and after, and its seconds after."""
    return {
        "fallback": str(fallback.fallback),
        "keeps_the_picture": fallback.fallback.keeps_the_picture,
        "vram_bytes_before": fallback.bytes_before,
        "vram_bytes_after": fallback.plan.vram_bytes,
        "block_s": fallback.plan.time.block_s,
    }


def layout_document(layout: LayoutPlan) -> dict[str, Any]:
    """Return a layout on several GPUs, with each kind of rank."""
    return {
        "layout": str(layout.layout),
        "gpus": layout.layout.num_gpus,
        "block_s": layout.block_s,
        "frames_per_s": round(layout.frames_per_s, 2),
        "first_block_s": round(layout.first_block_s, _DIGITS),
        "vram_bytes": layout.vram_bytes,
        "ranks": [_rank_document(rank) for rank in layout.ranks],
    }


def _rank_document(rank: RankPlan) -> dict[str, Any]:
    return {
        "role": rank.role,
        "ranks": rank.num_ranks,
        "steps": list(rank.steps),
        "vram_bytes": rank.vram_bytes,
        "ram_bytes": rank.ram_bytes,
        "busy_s": round(rank.busy_s, _DIGITS),
        "plan": plan_document(rank.plan) if rank.plan else None,
    }
