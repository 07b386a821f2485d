"""Launches and memory traffic of one tick beside matrix products and attention, counted.

Inputs: how weights and rings are stored, how many lanes a tick carries. Output: counts that grow with
tokens, keys, weights and layers. They come from the real engine on fake CUDA tensors of the published
model (`lipcast.lab.kernel_fit`); a test compares this table with a fresh count, and
`benchmarks/gpu_check.py count --table` prints a new one after the kernels have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Literal

from lipcast.config.gpu_options import KernelName
from lipcast.config.precision import KVPrecision, Precision


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """What a tick asks of a GPU; counts of several properties add up.

    Bytes are reads and writes of the device's memory. The first three are of every lane and layer.
    """

    bytes_per_value: float = 0.0
    """Per number of the hidden states [tokens, D]."""
    bytes_per_hidden: float = 0.0
    """Per number inside the feed-forward [tokens, F]."""
    bytes_per_key: float = 0.0
    """Per number of the keys of ring and sink [keys, D]."""
    bytes_per_injected_value: float = 0.0
    """Per number of the hidden states, of every lane and audio injector."""
    bytes_per_weight: float = 0.0
    """Per weight that is multiplied, once per tick."""
    launches_per_layer: float = 0.0
    launches_per_lane_layer: float = 0.0
    launches_per_injector: float = 0.0

    def __add__(self, other: KernelCounts) -> KernelCounts:
        names = [field.name for field in fields(self)]
        return KernelCounts(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class CountTable:
    """The counts by property, of one kind of kernels."""

    half: KernelCounts
    """Weights, activations and rings of two bytes."""
    single: KernelCounts
    """Weights, activations and rings in float32."""
    fp8_products: KernelCounts
    """Activations are quantised for products of 8-bit floats."""
    fp4_products: KernelCounts
    """Activations are quantised for products of NVFP4, and block scales are laid out for them."""
    rings: Mapping[KVPrecision, KernelCounts]
    """Keys and values are encoded where they are written and decoded where they are read."""
    several_lanes: KernelCounts
    """Lanes are joined for what they share."""
    by_parts: KernelCounts = KernelCounts()
    """What attending by parts adds to joining, and saves."""


WeightReading = Literal["as stored", "in registers", "dequantised"]
"""How stored weights are multiplied: as they are, restored tile by tile in the product, or expanded to two
bytes before it."""
KeyReading = Literal["joined", "by parts", "in place"]
"""How attention finds the keys of ring and sink: laid side by side; those of two bytes where they lie, ring
and sink apart, and the parts are merged; or all where they lie, by one kernel."""

TABLES: Mapping[KernelName, CountTable] = MappingProxyType(
    {
        "plain": CountTable(
            half=KernelCounts(344.4, 4.0, 8.0, 80.0, 0.0, 57, 27, 18),
            single=KernelCounts(280.4, 8.0, 16.0, 64.0, 0.0, 42, 23, 14),
            fp8_products=KernelCounts(125.0, 25.0, 0.0, 50.0, 0.0, 48, 0, 16),
            fp4_products=KernelCounts(834.6, 166.9, 0.0, 333.6, 0.09, 240, 0, 78),
            rings=MappingProxyType(
                {
                    "fp8": KernelCounts(42.7, bytes_per_key=6.06, launches_per_lane_layer=20),
                    "int4": KernelCounts(86.4, bytes_per_key=10.12, launches_per_lane_layer=40),
                }
            ),
            several_lanes=KernelCounts(13.8, launches_per_layer=12, launches_per_injector=4),
        ),
        # Ring and sink are joined, but for the last row.
        "triton": CountTable(
            half=KernelCounts(56.1, 4.0, 8.0, 20.0, 0.0, 14, 4, 6),
            single=KernelCounts(84.1, 8.0, 16.0, 28.0, 0.0, 14, 4, 6),
            fp8_products=KernelCounts(3.0, -1.0, 0.0, 2.0, 0.0, 2, 0, 1),
            fp4_products=KernelCounts(24.9, 4.94, 0.0, 9.75, 0.09, 56, 0, 16),
            rings=MappingProxyType(
                {
                    "fp8": KernelCounts(-0.3, bytes_per_key=-1.94),
                    "int4": KernelCounts(-0.5, bytes_per_key=-2.88),
                }
            ),
            several_lanes=KernelCounts(13.8, launches_per_layer=12, launches_per_injector=4),
            by_parts=KernelCounts(8.1, bytes_per_key=-8.0, launches_per_lane_layer=2),
        ),
    }
)
DEQUANTISED: Mapping[Precision, KernelCounts] = MappingProxyType(
    {
        "fp8": KernelCounts(bytes_per_weight=7.0, launches_per_layer=16, launches_per_injector=4),
        "int8": KernelCounts(bytes_per_weight=7.0, launches_per_layer=16, launches_per_injector=4),
        "int4": KernelCounts(
            bytes_per_weight=15.1, launches_per_layer=48, launches_per_injector=12
        ),
        "nvfp4": KernelCounts(
            bytes_per_weight=14.8, launches_per_layer=130, launches_per_injector=32
        ),
    }
)
"""Weights are expanded to two bytes before every use."""


def kernel_counts(
    precision: Precision,
    kv_precision: KVPrecision,
    *,
    num_lanes: int,
    reading: WeightReading,
    kernels: KernelName,
    attends: KeyReading = "joined",
) -> KernelCounts:
    """Return the counts of a tick, `reading` being how the weights are multiplied.

    `attends`: how attention finds the keys of ring and sink.
    """
    table = TABLES[kernels]
    counts = table.single if precision == "fp32" else table.half
    if reading == "dequantised":
        counts += DEQUANTISED[precision]
    elif precision == "fp8" and reading == "as stored":
        counts += table.fp8_products
    elif precision == "nvfp4" and reading == "as stored":
        counts += table.fp4_products
    counts += table.rings.get(kv_precision, KernelCounts())
    if attends == "by parts":
        counts += table.by_parts
    if num_lanes > 1:
        counts += table.several_lanes
    if attends == "in place":  # without the pass that joins
        launches = counts.launches_per_lane_layer - 1
        counts = replace(counts, bytes_per_key=0.0, launches_per_lane_layer=launches)
    return counts
