"""Options of memory, checked: budgets, offloading, and the fallbacks when it runs out.

Input: plain values. Output: a frozen `MemoryOptions`. Raises UsageError for what makes no sense.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from lipcast.config.fallbacks import parse_fallbacks
from lipcast.config.precision import KV_PRECISIONS, KVPrecision
from lipcast.config.units import parse_bytes
from lipcast.errors import UsageError


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How to use memory. The defaults leave everything to the planner.

    `vram` and `ram` are budgets such as "12GB" or "11.5GiB"; None: what is free.
    `offload_model` streams all weights from host memory, `offload_kv_cache` the KV cache.
    `kv_precision` is that of the KV cache: "bf16", "fp8" or "int4".
    `fallback` lists the fallbacks to take, in order, when memory runs out: "kv_streamed, infer_frames=32,
    size=384*256"; "none" allows none. By default those that keep the video are taken, and
    `allow_degrade` adds those that change it.
    """

    vram: str | None = None
    ram: str | None = None
    offload_model: bool = False
    offload_kv_cache: bool = False
    kv_precision: KVPrecision | None = None
    fallback: str | None = None
    allow_degrade: bool = False

    def __post_init__(self) -> None:
        for name in ("vram", "ram"):
            self.budget_bytes(name, 0)
        if self.kv_precision not in {None, *KV_PRECISIONS}:
            known = ", ".join(KV_PRECISIONS)
            raise UsageError(f"kv_precision: expected one of {known}, got {self.kv_precision!r}")
        if self.fallback is not None and self.fallback != "none":
            parse_fallbacks(self.fallback)

    @property
    def asks_for_a_plan(self) -> bool:
        """Whether memory has to be planned on a CPU too, where nothing can be offloaded."""
        return self.vram is not None or self.kv_precision is not None

    def budget_bytes(self, name: str, default: int) -> int:
        """Return the budget "vram" or "ram" in bytes; `default` where the user gave none."""
        given: str | None = getattr(self, name)
        return default if given is None else parse_bytes(given, name=name)


MEMORY_OPTION_NAMES = tuple(field.name for field in fields(MemoryOptions))
