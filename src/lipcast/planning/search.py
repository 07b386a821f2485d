"""The search: the fastest config under a budget, or the smallest budget that works.

Input: a PlanRequest and a WorkShare. Output: `Candidate`s. Every `PlanConfig` is tried, and for each every
number of resident layers; the rings take the memory that is left, which is never slower. So a bigger budget
never gives a slower plan: what fitted before still fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from lipcast.config.generate_options import SCHEDULES
from lipcast.config.precision import KVPrecision, Precision, plain_precision
from lipcast.planning import costs, link
from lipcast.planning.graphs import MAX_GRAPHS
from lipcast.planning.plan import (
    WHOLE,
    BlockTime,
    Budget,
    PlanConfig,
    PlanConstraints,
    PlanRequest,
    WorkShare,
    total,
)
from lipcast.planning.workload import Workload, tile_size

_SLOTS = (3, 2)
_TILE_GRIDS = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 4))
_DISK_DRAG = 0.1
"""Part of the reading of mapped files that nothing hides; assumed."""
_DECIMALS = 6
"""Plans are compared in whole microseconds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete answer."""

    work: Workload
    resident: int
    """Layers whose weights stay on the GPU."""
    resident_rings: int
    pinned: int
    """Layers streamed from host memory; the rest come from disk."""
    time: BlockTime

    @property
    def rank(self) -> tuple[float | int | bool, ...]:
        """Sort key, less is better: seconds first, then the plainer of two equally fast plans."""
        config = self.work.config
        return (
            self.time.block_s,
            _PLAINNESS.index(config.precision),
            _PLAINNESS.index(config.kv_precision),
            config.schedule != SCHEDULES[0],
            config.sink_streamed,
            self.work.num_tiles,
            not config.graphs,
            -config.num_slots,
            -self.resident,
            -self.resident_rings,
        )


_PLAINNESS = ("fp32", "bf16", "fp8", "int8", "int4", "nvfp4")


def configs(request: PlanRequest) -> Iterator[PlanConfig]:
    """Yield every config that the constraints allow."""
    constraints = request.constraints
    precisions: tuple[Precision, ...] = ("bf16", "fp8") if request.hardware.has_bf16 else ("fp32",)
    if constraints.precision is not None:
        precisions = (constraints.precision,)
    schedules = (constraints.schedule,) if constraints.schedule else SCHEDULES
    sinks = (False, True) if constraints.stream_sink is None else (constraints.stream_sink,)
    grids = (constraints.tiles,) if constraints.tiles else tile_grids(request)
    records = request.hardware.has_cuda and constraints.graphs is not False
    recorded = (False, True) if records else (False,)
    for precision in precisions:
        rings = _kv_precisions(constraints, precision)
        for combination in product(rings, schedules, sinks, _SLOTS, grids, recorded):
            yield PlanConfig(precision, *combination)


def _kv_precisions(constraints: PlanConstraints, precision: Precision) -> tuple[KVPrecision, ...]:
    """Return the one that is asked for; else that of the computation, and 8 bits."""
    if constraints.kv_precision:
        return (constraints.kv_precision,)
    return (plain_precision(precision), "fp8")


def _leanest(request: PlanRequest) -> Iterator[PlanConfig]:
    """Yield configs that can need least: fewest slots, and one lane where that is allowed."""
    schedule = request.constraints.schedule or SCHEDULES[0]
    for config in configs(request):
        is_lean = config.num_slots == min(_SLOTS) and not config.graphs
        if is_lean and config.schedule == schedule:
            yield config


def tile_grids(request: PlanRequest) -> tuple[tuple[int, int], ...]:
    """Return the grids of decoder tiles worth trying, coarsest first: those whose tiles get smaller."""
    geometry = request.geometry
    tall = geometry.latent_height >= geometry.latent_width
    found: list[tuple[int, int]] = []
    areas: list[int] = []
    for rows, columns in _TILE_GRIDS:
        grid = (rows, columns) if tall else (columns, rows)
        height, width = tile_size(request, grid)
        if not areas or height * width < areas[-1]:
            found.append(grid)
            areas.append(height * width)
    return tuple(found)


def fastest(request: PlanRequest, share: WorkShare) -> Candidate | None:
    """Return the best candidate under the budget; None where nothing fits."""
    every = (_Search(request, share, config) for config in configs(request))
    searches = [search for search in every if search.can_record or not search.records]
    best: Candidate | None = None
    for search in sorted(searches, key=lambda search: search.floor_s):
        if best is not None and search.floor_s > best.time.block_s:
            break  # even without any copy it would be slower, and so are all that follow
        for candidate in search.candidates():
            if best is None or candidate.rank < best.rank:
                best = candidate
    return best


def least_vram(request: PlanRequest, share: WorkShare = WHOLE) -> int | None:
    """Return the smallest GPU budget that works with this host memory; None where none does."""
    searches = (_Search(request, share, config) for config in _leanest(request))
    found = (need for search in searches for need in search.least_vram())
    return min(found, default=None)


def least_ram(request: PlanRequest, share: WorkShare = WHOLE) -> int | None:
    """Return the smallest host budget that works with this GPU memory; None where none does."""
    searches = (_Search(request, share, config) for config in _leanest(request))
    found = (need for search in searches for need in search.least_ram())
    return min(found, default=None)


def decode_block_seconds(request: PlanRequest, *, area_factor: float = 1.0) -> float:
    """Return the seconds to decode one block on the request's GPU."""
    return costs.decode_seconds(
        request.models.vae, request.geometry, request.hardware, area_factor=area_factor
    )


class _Search:
    """One config: bytes and seconds over the numbers of resident layers."""

    def __init__(self, request: PlanRequest, share: WorkShare, config: PlanConfig) -> None:
        self._work = Workload(request, share, config)
        self._budget, self.records = request.budget, config.graphs

    @property
    def can_record(self) -> bool:
        """Whether ticks may be recorded if all is on the GPU: on one GPU, and not too many."""
        work = self._work
        is_alone = work.share == WHOLE and not work.config.sink_streamed
        return is_alone and work.num_graphs <= MAX_GRAPHS

    @property
    def floor_s(self) -> float:
        """No plan of this config is faster."""
        return self._times.floor_s

    def candidates(self) -> Iterator[Candidate]:
        work = self._work
        for resident in self._residents():
            rings = self._fitting_rings(resident, self._budget)
            if rings is None or (self.records and rings < work.num_layers):
                continue
            pinned = self._pinned(resident, rings)
            if pinned is not None:
                time = self._times.block(resident, rings, pinned)
                yield Candidate(work, resident, rings, pinned, time)

    def least_vram(self) -> Iterator[int]:
        work = self._work
        for resident in self._residents_of_least():
            for rings in self._rings_for_ram(resident):
                weights = work.weights_bytes(resident)
                generate = work.fixed_bytes + weights + work.rings_bytes(rings)
                yield max(generate, work.prepare_fixed_bytes + weights)

    def least_ram(self) -> Iterator[int]:
        for resident in self._residents_of_least():
            rings = self._fitting_rings(resident, self._budget)
            if rings is not None:
                yield self._least_ram_of(resident, rings)

    @cached_property
    def _times(self) -> _Times:
        return _Times(self._work)

    def _residents(self) -> range:
        work = self._work
        if work.share.shards > 1:
            return range(work.num_layers, work.num_layers + 1)
        most = work.request.constraints.max_resident_layers
        if self.records:  # everything or nothing
            return range(
                work.num_layers, work.num_layers + (most is None or most >= work.num_layers)
            )
        return range((work.num_layers if most is None else min(work.num_layers, most)) + 1)

    def _residents_of_least(self) -> Iterator[int]:
        """Yield the numbers that can need least: the first, and those whose rest is less than staging.

        In between, a layer more on the GPU frees nothing on the host, since all may come from disk.
        """
        allowed, staging = self._residents(), self._work.staging_bytes
        yield allowed[0]
        yield from (r for r in allowed[1:] if self._streamed_bytes(r) < staging)

    @cached_property
    def _max_rings(self) -> int:
        most = self._work.request.constraints.max_resident_ring_layers
        return self._work.num_layers if most is None else min(self._work.num_layers, most)

    def _fitting_rings(self, resident: int, budget: Budget) -> int | None:
        """Return the most ring layers that fit beside the weights."""
        work = self._work
        weights = work.weights_bytes(resident)
        if work.prepare_fixed_bytes + weights > budget.vram_bytes:
            return None
        left = budget.vram_bytes - work.fixed_bytes - weights
        if self._max_rings == work.num_layers and work.rings_bytes(work.num_layers) <= left:
            return work.num_layers
        left -= work.rings_bytes(0)
        if left < 0:
            return None
        return min(left // work.rings_layer_bytes, work.num_layers - 1, self._max_rings)

    def _ram_of_rings(self, rings: int) -> int:
        return self._work.fixed_ram_bytes + self._work.pinned_rings_bytes(rings)

    def _streamed_bytes(self, resident: int) -> int:
        return self._work.layers_total[-1] - self._work.layers_total[resident]

    def _pinned(self, resident: int, rings: int) -> int | None:
        """Return how many streamed layers host memory holds; None where not even the rings fit."""
        left = self._budget.ram_bytes - self._ram_of_rings(rings)
        if left >= self._streamed_bytes(resident):
            return self._work.num_layers - resident
        left -= self._work.staging_bytes
        if left < 0:
            return None
        totals = self._work.layers_total
        return bisect_right(totals, totals[resident] + left) - 1 - resident

    def _least_ram_of(self, resident: int, rings: int) -> int:
        streamed = min(self._streamed_bytes(resident), self._work.staging_bytes)
        return self._ram_of_rings(rings) + streamed

    def _rings_for_ram(self, resident: int) -> Iterator[int]:
        """Yield the numbers of resident ring layers that can be the least: all, and the fewest possible."""
        work = self._work
        excess = self._least_ram_of(resident, 0) - self._budget.ram_bytes
        fewest = max(0, -(-excess // work.rings_layer_bytes))
        if fewest <= self._max_rings:
            yield fewest
            if self._max_rings == work.num_layers:
                yield work.num_layers


class _Times:
    """Seconds per block of one config."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._hardware = work.request.hardware
        self.compute_s = work.ticks_per_block * self._tick_s()
        self.decode_s = self._decode_s() if work.share.decodes else 0.0
        self.floor_s = round(self.compute_s + self.decode_s, _DECIMALS)

    def block(self, resident: int, rings: int, pinned: int) -> BlockTime:
        """Return the time of a block: `pinned` streamed layers come from host memory, the rest from disk."""
        work = self._work
        disk = link.crossing_bytes(work, resident + pinned)
        copy_s = costs.copy_seconds(
            self._hardware,
            to_gpu_bytes=total(link.to_gpu_parts(work, resident, rings)),
            to_host_bytes=total(link.to_host_parts(work, rings)),
        )
        disk_s = disk / self._hardware.disk_bytes_per_s
        longest = max(self.compute_s + self.decode_s, copy_s, disk_s, self._gather_s)
        longest += _DISK_DRAG * disk_s
        return BlockTime(
            self.compute_s, self.decode_s, copy_s, disk_s, self._gather_s, round(longest, _DECIMALS)
        )

    def _tick_s(self) -> float:
        work = self._work
        inputs = work.injecting_dit, work.geometry, self._hardware
        lanes, split, precision = work.num_lanes, work.split, work.config.precision
        # A quantised ring changes the picture: that it is read 1 % faster is no reason to take it.
        alone = max(
            costs.tick_seconds(
                *inputs,
                precision=precision,
                kv_precision=kv,
                num_lanes=lanes,
                split=split,
                graphs=work.config.graphs,
            )
            for kv in {work.config.kv_precision, plain_precision(precision)}
        )
        return alone + costs.exchange_seconds(*inputs, num_lanes=lanes, split=split)

    def _decode_s(self) -> float:
        work = self._work
        geometry, (height, width) = work.request.geometry, work.tile
        factor = work.num_tiles * height * width / (geometry.latent_height * geometry.latent_width)
        return decode_block_seconds(work.request, area_factor=factor)

    @cached_property
    def _gather_s(self) -> float:
        """Every tick each GPU receives the others' shards of all layers."""
        work, shards = self._work, self._work.share.shards
        received = work.ticks_total[-1] * (shards - 1) / shards
        return work.ticks_per_block * received / self._hardware.peer_bytes_per_s
