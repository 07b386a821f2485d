"""Bytes that cross the link between host and GPU for every block, in the steady state.

Input: a Workload, and how many layers and ring layers stay on the GPU. Output: the bytes by part.
"""

from __future__ import annotations

from lipcast.planning import items
from lipcast.planning.plan import MemoryItem
from lipcast.planning.workload import Workload


def crossing_bytes(work: Workload, first: int) -> int:
    """Return the bytes of the layers' weights from `first` on, in residency order."""
    if work.share.shards > 1:
        return 0
    ticks, audio = work.ticks_total, work.audio_total
    return work.ticks_per_block * (ticks[-1] - ticks[first]) + audio[-1] - audio[first]


def to_gpu_parts(work: Workload, resident: int, rings: int) -> tuple[MemoryItem, ...]:
    """Return what comes to the GPU."""
    shards = work.ticks_per_block * work.shard_bytes if work.shards_on_host else 0
    sink = work.ticks_per_block * work.num_layers * work.sink_layer_bytes
    return (
        MemoryItem(items.LAYERS, crossing_bytes(work, resident) + shards),
        MemoryItem(items.RINGS, work.read_rings_bytes(rings)),
        MemoryItem(items.SINK, sink if work.config.sink_streamed else 0),
        MemoryItem(items.DECODER_STATE, work.parked_bytes),
    )


def to_host_parts(work: Workload, rings: int) -> tuple[MemoryItem, ...]:
    """Return what goes back to host memory, beside frames."""
    return (
        MemoryItem(items.RINGS, work.written_rings_bytes(rings)),
        MemoryItem(items.DECODER_STATE, work.parked_bytes),
    )
