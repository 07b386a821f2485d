"""Memory of one session: a KV ring per step, the sink, and the rotated reference keys of blocks in flight.

Inputs: a device context, the shapes of a video, a plan of placements. Outputs: `KVRing`s and a `Sink`.
State: where every layer of them is. Layers in host memory are streamed through slots, the next one being
copied while one is used. The plan may change while blocks are in flight; nothing is forgotten. Invariant: all
memory goes back to the arenas on `release`, when the constructor raises, and when the session is dropped.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from lipcast.config.precision import KVPrecision
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.layer_buffers import ByteRange, LayerBuffers
from lipcast.memory.slots import SlotPool
from lipcast.models.dit import DiT
from lipcast.models.kv_codec import KVCodec, PlainCodec, kv_codec
from lipcast.models.kv_ring import KVRing, Positions, RingLayout, RingPlanes
from lipcast.models.sink import Sink, SinkPlanes
from lipcast.planning import items
from lipcast.planning.plan import Placement
from lipcast.planning.workload import RING_SLOTS


@dataclass(frozen=True, slots=True)
class SessionShape:
    """Sizes of one video that decide the memory of its session."""

    window: int
    tokens_per_frame: int
    latent_height: int
    latent_width: int
    num_steps: int
    num_lanes: int
    """Lanes that a tick may carry, which is the number of blocks that may be in flight."""
    start_frame: int
    num_heads: int | None = None
    """Attention heads whose keys and values are kept on this device; None: all of the model."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Placements of the rings and of the sink."""

    ring_layers: tuple[Placement, ...]
    kv_precision: KVPrecision | None = None
    """None: the precision that the model computes in."""
    sink_streamed: bool = False

    @property
    def is_resident(self) -> bool:
        """Whether nothing passes through slots."""
        return not self.sink_streamed and set(self.ring_layers) == {"resident"}

    @classmethod
    def resident(cls, num_layers: int) -> SessionPlan:
        """Return the plan that keeps everything on the device."""
        where: Placement = "resident"
        return cls((where,) * num_layers)


class _RingLayers:
    """Layers of a ring, as `RingStorage`."""

    def __init__(self, layout: RingLayout, buffers: LayerBuffers) -> None:
        self._layout, self._buffers = layout, buffers

    @property
    def num_bytes(self) -> int:
        return self._buffers.num_bytes

    def planes(
        self,
        layer: int,
        *,
        overwritten: Sequence[Positions] = (),
        overwritten_next: Sequence[Positions] = (),
    ) -> RingPlanes:
        planes: RingPlanes = self._buffers.planes(
            layer,
            overwritten=self._bytes_of(overwritten),
            overwritten_next=self._bytes_of(overwritten_next),
        )
        return planes

    def mark_dirty(self, layer: int, positions: Sequence[Positions]) -> None:
        self._buffers.write_back(layer, self._bytes_of(positions))

    def _bytes_of(self, positions: Sequence[Positions]) -> list[ByteRange]:
        return [stretch for run in positions for stretch in self._layout.byte_ranges(run)]


class _SinkLayers:
    """Layers of a sink, as `SinkStorage`."""

    def __init__(self, buffers: LayerBuffers) -> None:
        self._buffers = buffers

    def planes(self, layer: int) -> SinkPlanes:
        planes: SinkPlanes = self._buffers.planes(layer)
        return planes

    def mark_dirty(self, layer: int) -> None:
        self._buffers.write_back(layer, [(0, self._buffers.layer_bytes)])


class _Allocations:
    """All that a session has allocated. Refers to no session, so that it can outlive a dropped one."""

    def __init__(self, device_context: DeviceContext) -> None:
        self._vram = device_context.vram
        self.buffers: list[LayerBuffers] = []
        self.pools: list[SlotPool] = []
        self.rotated_refs: list[Tensor] = []
        """One buffer per lane for the rotated reference keys of a block."""

    def release_streaming(self) -> None:
        """Free everything that can be made anew: slots, and rotated reference keys."""
        with ExitStack() as stack:  # frees all of it, even if waiting for some of it raises
            for buffer in self.rotated_refs:
                stack.callback(self._vram.release, buffer)
            for pool in self.pools:
                stack.callback(pool.close)
            self.rotated_refs, self.pools = [], []

    def release(self) -> None:
        """Free everything. Further calls do nothing."""
        with ExitStack() as stack:
            for buffers in self.buffers:
                stack.callback(buffers.release)
            self.release_streaming()


class SessionMemory:
    """`rings[step]`, `sink`, and `rotated_ref_buffer(block)` for the blocks in flight.

    Use it as a context manager, or call `release` at the end.
    """

    def __init__(
        self,
        model: DiT,
        shape: SessionShape,
        device_context: DeviceContext,
        plan: SessionPlan | None = None,
    ) -> None:
        """Allocate everything or nothing. Raises torch.OutOfMemoryError if the plan does not fit."""
        self.plan = plan or SessionPlan.resident(model.config.num_layers)
        self._shape, self._device_context, self._dtype = shape, device_context, model.dtype
        self._num_heads = shape.num_heads or model.config.num_heads
        self._head_dim = model.config.head_dim
        self._num_layers = model.config.num_layers
        self._layout = self._ring_layout(self.plan)
        whole = model.sink_layout(shape.latent_height, shape.latent_width)
        sink_layout = replace(whole, num_heads=self._num_heads)
        self._allocations = _Allocations(device_context)
        self._finalizer = weakref.finalize(self, self._allocations.release)
        self._finalizer.atexit = False  # the end of the process frees everything by itself
        try:
            self._rings = [self._ring_buffers() for _ in range(shape.num_steps)]
            self._sink = LayerBuffers(
                sink_layout,
                self._sink_placements(self.plan),
                allocator=device_context.allocator(items.SINK, items.SINK),
            )
            self._allocations.buffers.append(self._sink)
            self.sink = Sink(sink_layout, _SinkLayers(self._sink), num_layers=self._num_layers)
            self._open()
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def num_bytes(self) -> int:
        """Bytes of the rings and of the sink, wherever they are."""
        return sum(buffers.num_bytes for buffers in self._allocations.buffers)

    def rotated_ref_buffer(self, block: int) -> Tensor | None:
        """Return memory for the rotated reference keys [L, S, N, d] of a block.

        None while the sink is streamed. Blocks in flight are consecutive, so each has its own buffer.
        """
        buffers = self._allocations.rotated_refs
        if not buffers:
            return None
        return self.sink.layout.placed_view(buffers[block % self._shape.num_lanes])

    def apply_plan(self, plan: SessionPlan) -> None:
        """Move what the new plan puts elsewhere, and convert what it stores in another precision.

        Rotated reference keys are lost; rotate the sink again. Raises torch.OutOfMemoryError if there
        is not enough memory. Rings and sink are intact then, nothing else is allocated, and the call
        must be repeated with this plan or another before the session goes on.
        """
        self._allocations.release_streaming()
        layout = self._ring_layout(plan)
        moves = [
            partial(ring.apply_plan, plan.ring_layers, layout, self._convert)
            for ring in self._rings
        ]
        # What leaves the device goes first: the sink makes room for the rings, or they for it.
        moves.insert(
            0 if plan.sink_streamed else len(moves),
            partial(self._sink.apply_plan, self._sink_placements(plan)),
        )
        for move in moves:
            move()
        self.plan, self._layout = plan, layout
        self._open()

    def release(self) -> None:
        """Return all memory to the arenas. Further calls do nothing."""
        self._finalizer()

    def _convert(
        self, old_layout: RingLayout, old: RingPlanes, new_layout: RingLayout, new: RingPlanes
    ) -> None:
        """Store one layer of a ring with another codec."""
        shape = (new_layout.window, new_layout.tokens_per_frame, self._num_heads, self._head_dim)
        for stored, planes in ((old.keys, new.keys), (old.values, new.values)):
            x_WSNd = torch.empty(shape, dtype=self._dtype, device=planes[0].device)
            old_layout.codec.decode_into(stored, x_WSNd)
            for plane, encoded in zip(planes, new_layout.codec.encode(x_WSNd), strict=True):
                plane.copy_(encoded)

    def _ring_layout(self, plan: SessionPlan) -> RingLayout:
        codec: KVCodec
        if plan.kv_precision is None:
            codec = PlainCodec(self._num_heads, self._head_dim, self._dtype)
        else:
            codec = kv_codec(plan.kv_precision, num_heads=self._num_heads, head_dim=self._head_dim)
        return RingLayout(codec, self._shape.window, self._shape.tokens_per_frame)

    def _ring_buffers(self) -> LayerBuffers:
        allocator = self._device_context.allocator(items.RINGS, items.PINNED_RINGS)
        buffers = LayerBuffers(self._layout, self.plan.ring_layers, allocator=allocator)
        self._allocations.buffers.append(buffers)
        return buffers

    def _sink_placements(self, plan: SessionPlan) -> tuple[Placement, ...]:
        where: Placement = "pinned" if plan.sink_streamed else "resident"
        return (where,) * self._num_layers

    def _open(self) -> None:
        """Allocate what the plan streams through, and make the rings in the layout of the plan."""
        try:
            self._open_sink()
            self._open_rings()
        except BaseException:
            self._allocations.release_streaming()
            raise
        self.rings = [
            KVRing(
                self._layout,
                _RingLayers(self._layout, ring),
                start_frame=self._shape.start_frame,
            )
            for ring in self._rings
        ]

    def _open_sink(self) -> None:
        if self.plan.sink_streamed:
            self._sink.pass_through(self._pool(items.SINK, self._sink), self._sink)
            return
        size = self._num_layers * self.sink.layout.placed_bytes
        for _ in range(self._shape.num_lanes):
            self._allocations.rotated_refs.append(
                self._device_context.vram.allocate(items.SINK, size)
            )

    def _open_rings(self) -> None:
        if all(where == "resident" for where in self.plan.ring_layers):
            return
        pools = [self._pool(items.RING_SLOTS, self._rings[0]) for _ in range(self._shape.num_lanes)]
        for step, ring in enumerate(self._rings):
            # With a lane per step each ring has its own pool; with one lane they take turns.
            following = self._rings[(step + 1) % len(self._rings)] if len(pools) == 1 else ring
            ring.pass_through(pools[step % len(pools)], following)

    def _pool(self, part: str, buffers: LayerBuffers) -> SlotPool:
        pool = SlotPool(
            self._device_context.vram,
            self._device_context.copier,
            part=part,
            num_slots=RING_SLOTS,
            slot_bytes=buffers.layer_bytes,
        )
        self._allocations.pools.append(pool)
        return pool
