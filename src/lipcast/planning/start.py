"""Seconds from the start of a process to the first pictures, by part.

Input: a plan. Output: `StartTime`. The checkpoint is read while weights go to the GPU and are quantised
there, so the longer of the two counts. Assumed, beside the rates of the disk and the link: a published
checkpoint without adapters, a prompt that is known, `PROCESS_S` for Python, torch and CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from lipcast.config.precision import Precision
from lipcast.planning import items, sizes
from lipcast.planning.plan import Plan
from lipcast.planning.search import decode_block_seconds
from lipcast.planning.tensors import dit_tensors, num_parameters

PROCESS_S = 5.0
"""Python and torch, the CUDA context, trials of kernels; assumed."""
PAGEABLE_BYTES_PER_S = 6.9e9
"""Ordinary host memory to a GPU, measured on an H100."""
PINNING_BYTES_PER_S = 2**31 / 1.1
"""Locking pages of host memory, measured beside that H100."""
QUANTISING_BYTES: Mapping[Precision, float] = MappingProxyType(
    {"fp8": 41.0, "int8": 49.0, "int4": 193.9, "nvfp4": 847.8}
)
"""Memory traffic per weight that is quantised on a GPU; counted (`tests/planning/test_start.py`)."""
_PREPARE_DECODES = (25.3 + 46.1) / 27.4
"""Encoding a portrait and warming the decoder up, in decoded blocks; counted."""


@dataclass(frozen=True, slots=True)
class StartTime:
    """Seconds by part; the parts follow on one another, but for reading and quantising."""

    process_s: float
    read_s: float
    """All networks from the disk, but for the text encoder."""
    quantise_s: float
    """Weights over the link, and quantised on the GPU."""
    pin_s: float
    """Host memory that is streamed from: layers, rings, sink."""
    prepare_s: float
    """The portrait, the decoder's history, and the sink."""
    first_block_s: float

    @property
    def total_s(self) -> float:
        """Seconds until the first pictures."""
        loading = max(self.read_s, self.quantise_s)
        return self.process_s + loading + self.pin_s + self.prepare_s + self.first_block_s


def start_time(plan: Plan, *, converted: bool = False) -> StartTime:
    """Return the start of a plan's first video; `converted`: its weights are stored as they are used."""
    request, models = plan.request, plan.request.models
    hardware, precision = request.hardware, plan.config.precision
    weights = num_parameters(dit_tensors(models.dit))
    stored = sizes.dit_bytes(models.dit, precision if converted else "bf16")
    others = sizes.vae_bytes(models.vae, "bf16") + sizes.speech_encoder_bytes(models.speech)
    passes = 0.0 if converted else QUANTISING_BYTES.get(precision, 0.0) * weights
    pinned = sum(part.num_bytes for part in plan.ram_parts if part.name in items.PINNED)
    decode_s = decode_block_seconds(request)
    return StartTime(
        process_s=PROCESS_S,
        read_s=(stored + others) / hardware.disk_bytes_per_s,
        quantise_s=stored / PAGEABLE_BYTES_PER_S + passes / hardware.memory_bytes_per_s,
        pin_s=pinned / PINNING_BYTES_PER_S,
        prepare_s=_PREPARE_DECODES * decode_s + plan.time.compute_s / request.num_evaluations,
        first_block_s=plan.first_block_s,
    )


def start_document(plan: Plan) -> dict[str, float]:
    """Return the parts as plain values."""
    start = start_time(plan)
    seconds = {
        **asdict(start),
        "total_s": start.total_s,
        "converted_total_s": start_time(plan, converted=True).total_s,
    }
    return {name: round(value, 2) for name, value in seconds.items()}
