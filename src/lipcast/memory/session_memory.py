"""What one session remembers: a ring per step, the sink, and the placed keys of the blocks in flight.

Input: a machine, the shapes of a video, a plan of placements. Output: `KVRing`s and a `Sink`.
State: where every layer of them is. Layers in host memory pass through slots, the next being copied while
one is computed with. The plan may change while blocks are in flight; nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lipcast.memory.device_context import DeviceContext
from lipcast.memory.layer_buffers import LayerBuffers, Rewrite
from lipcast.memory.slots import SlotPool
from lipcast.models.dit import DiT
from lipcast.models.kv_codec import KVCodec, PlainCodec, kv_codec
from lipcast.models.kv_ring import KVRing, RingLayout, RingPlanes, Slots
from lipcast.models.sink import Sink, SinkPlanes
from lipcast.planning.plan import Placement
from lipcast.planning.sizes import KVPrecision
from lipcast.planning.workload import RING_SLOTS

RINGS, RING_SLOTS_PART, SINK = "KV rings", "slots for streamed rings", "sink"
RINGS_PINNED = "KV rings, pinned"


@dataclass(frozen=True, slots=True)
class SessionShape:
    """Sizes of one video that decide what is remembered."""

    window: int
    tokens_per_frame: int
    latent_height: int
    latent_width: int
    num_steps: int
    num_lanes: int
    """Lanes that a tick may carry: blocks that may be in flight."""
    start_frame: int
    num_heads: int | None = None
    """Attention heads whose keys and values are kept here; None: all of the model."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Where rings and sink live."""

    ring_layers: tuple[Placement, ...]
    ring_precision: KVPrecision | None = None
    """None: as the model computes."""
    sink_streamed: bool = False

    @classmethod
    def resident(cls, num_layers: int) -> SessionPlan:
        """Everything on the device."""
        where: Placement = "resident"
        return cls((where,) * num_layers)


class _RingLayers:
    """A ring's layers as its storage protocol wants them."""

    def __init__(self, layout: RingLayout, buffers: LayerBuffers) -> None:
        self._layout, self._buffers = layout, buffers

    @property
    def num_bytes(self) -> int:
        return self._buffers.num_bytes

    def planes(self, layer: int) -> RingPlanes:
        planes: RingPlanes = self._buffers.planes(layer)
        return planes

    def mark_dirty(self, layer: int, slots: Sequence[Slots]) -> None:
        size = self._layout.slot_bytes
        self._buffers.write_back(layer, [(first * size, count * size) for first, count in slots])


class _SinkLayers:
    """A sink's layers as its storage protocol wants them."""

    def __init__(self, buffers: LayerBuffers) -> None:
        self._buffers = buffers

    def planes(self, layer: int) -> SinkPlanes:
        planes: SinkPlanes = self._buffers.planes(layer)
        return planes

    def mark_dirty(self, layer: int) -> None:
        self._buffers.write_back(layer, [(0, self._buffers.layer_bytes)])


class SessionMemory:
    """`rings[step]`, `sink`, and `rotated_ref_buffer(block)` for the blocks in flight."""

    def __init__(
        self,
        model: DiT,
        shape: SessionShape,
        device_context: DeviceContext,
        plan: SessionPlan | None = None,
    ) -> None:
        """Raises torch.OutOfMemoryError where the plan does not fit."""
        self.plan = plan or SessionPlan.resident(model.config.num_layers)
        self._shape, self._device_context, self._dtype = shape, device_context, model.dtype
        self._num_heads = shape.num_heads or model.config.num_heads
        self._head_dim = model.config.head_dim
        self._num_layers = model.config.num_layers
        self._pools: list[SlotPool] = []
        self._placed: list[Tensor] = []
        """One buffer per lane for the placed reference keys of a block."""
        self._layout = self._ring_layout(self.plan)
        ring_allocator = device_context.allocator(RINGS, RINGS_PINNED)
        self._rings = [
            LayerBuffers(
                self._layout.num_bytes,
                self.plan.ring_layers,
                allocator=ring_allocator,
                view=self._layout.view,
            )
            for _ in range(shape.num_steps)
        ]
        whole = model.sink_layout(shape.latent_height, shape.latent_width)
        layout = replace(whole, num_heads=self._num_heads)
        self._sink = LayerBuffers(
            layout.num_bytes,
            self._sink_placements(self.plan),
            allocator=device_context.allocator(SINK, SINK),
            view=layout.view,
        )
        self.sink = Sink(layout, _SinkLayers(self._sink), num_layers=self._num_layers)
        self._open()

    @property
    def num_bytes(self) -> int:
        """Rings and sink, wherever they are."""
        return self._sink.num_bytes + sum(ring.num_bytes for ring in self._rings)

    def rotated_ref_buffer(self, block: int) -> Tensor | None:
        """Memory for the placed keys [L, S, N, d] of a block; None while the sink is streamed.

        Blocks in flight follow each other, so each has a room of its own.
        """
        if not self._placed:
            return None
        return self.sink.layout.placed_view(self._placed[block % self._shape.num_lanes])

    def apply_plan(self, plan: SessionPlan) -> None:
        """Move what the new plan puts elsewhere, or stores in another precision.

        Placed keys are lost: place the sink again. Raises torch.OutOfMemoryError where there is no
        room; nothing kept is lost, and the call may be made again with this plan or another.
        """
        self._close()
        layout = self._ring_layout(plan)
        rewrite = None
        if layout.num_bytes != self._layout.num_bytes:
            rewrite = Rewrite(layout.num_bytes, layout.view, partial(self._convert, layout))
        # Whatever leaves the device goes first: the sink makes room for the rings, or they for it.
        movers = [partial(ring.apply_plan, plan.ring_layers, rewrite) for ring in self._rings]
        movers.insert(
            0 if plan.sink_streamed else len(movers),
            partial(self._sink.apply_plan, self._sink_placements(plan)),
        )
        for move in movers:
            move()
        self.plan, self._layout = plan, layout
        self._open()

    def release(self) -> None:
        """Give all memory back."""
        self._close()
        for buffers in (*self._rings, self._sink):
            buffers.release()

    def _convert(self, layout: RingLayout, old: RingPlanes, new: RingPlanes) -> None:
        """One layer from the codec in force to that of `layout`."""
        shape = (layout.window, layout.tokens_per_frame, self._num_heads, self._head_dim)
        for stored, planes in ((old.keys, new.keys), (old.values, new.values)):
            x_WSNd = torch.empty(shape, dtype=self._dtype, device=planes[0].device)
            self._layout.codec.decode_into(stored, x_WSNd)
            for plane, encoded in zip(planes, layout.codec.encode(x_WSNd), strict=True):
                plane.copy_(encoded)

    def _ring_layout(self, plan: SessionPlan) -> RingLayout:
        codec: KVCodec
        if plan.ring_precision is None:
            codec = PlainCodec(self._num_heads, self._head_dim, self._dtype)
        else:
            codec = kv_codec(
                plan.ring_precision, num_heads=self._num_heads, head_dim=self._head_dim
            )
        return RingLayout(codec, self._shape.window, self._shape.tokens_per_frame)

    def _sink_placements(self, plan: SessionPlan) -> tuple[Placement, ...]:
        where: Placement = "pinned" if plan.sink_streamed else "resident"
        return (where,) * self._num_layers

    def _open(self) -> None:
        """Slots for what streams, rooms for what is placed, and rings in the layout in force."""
        if not self.plan.sink_streamed:
            size = self._num_layers * self.sink.layout.placed_bytes
            for _ in range(self._shape.num_lanes):
                self._placed.append(self._device_context.vram.allocate(SINK, size))
        else:
            self._sink.pass_through(self._pool(SINK, self._sink), self._sink)
        if any(where != "resident" for where in self.plan.ring_layers):
            pools = [
                self._pool(RING_SLOTS_PART, self._rings[0]) for _ in range(self._shape.num_lanes)
            ]
            for step, ring in enumerate(self._rings):
                # With a lane per step each ring has its pool; with one lane they take turns.
                following = self._rings[(step + 1) % len(self._rings)] if len(pools) == 1 else ring
                ring.pass_through(pools[step % len(pools)], following)
        self.rings = [
            KVRing(
                self._layout,
                _RingLayers(self._layout, ring),
                start_frame=self._shape.start_frame,
            )
            for ring in self._rings
        ]

    def _pool(self, part: str, buffers: LayerBuffers) -> SlotPool:
        arena = self._device_context.vram
        pool = SlotPool(self._device_context.copier)
        self._pools.append(pool)
        for _ in range(RING_SLOTS):
            pool.add(arena.allocate(part, buffers.layer_bytes))
        return pool

    def _close(self) -> None:
        for buffer in self._placed:
            self._device_context.vram.release(buffer)
        for pool in self._pools:
            for buffer in pool.close():
                self._device_context.vram.release(buffer)
        self._placed, self._pools = [], []
