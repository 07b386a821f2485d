"""Which (block, step) units run together, as data.

Unit (b, s) needs (b, s-1), whose latents it continues, and (b-1, s), whose keys and values lie in
the ring of step s. A stage is a device that owns consecutive steps, their rings and a sink; one device has
all of them. Before the swap block a stage fills its sink anew, and before each block with a new prompt: the
first unit of such a block on a stage needs the block before it finished there, so that one sink a stage is
in memory. The swap block also needs block 0 finished, whose first latent becomes the new reference.
Any list of ticks that respects this gives the same latents.

Input: number of steps, the blocks with a new reference or prompt, the stages, the lanes a tick may carry on
each. Output: ticks, lazily and without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lipcast.config.generate_options import ScheduleName


class Unit(NamedTuple):
    """One denoising step of one block."""

    block: int
    step: int


Tick = tuple[Unit, ...]
"""Units that one pass of the transformer computes together."""


@dataclass(frozen=True, slots=True)
class Order:
    """The dependencies of a run. `swap_block` is None where the reference is never replaced."""

    num_steps: int
    swap_block: int | None = None
    stages: tuple[tuple[int, ...], ...] = ()
    """The steps of each stage; none: one stage has all."""
    drains_at_swap: bool = False
    """All stages fill their sinks anew at the same time, with no block in flight."""
    prompt_blocks: frozenset[int] = frozenset()
    """Blocks that begin with a new prompt."""

    @property
    def all_stages(self) -> tuple[tuple[int, ...], ...]:
        return self.stages or (tuple(range(self.num_steps)),)

    def needs(self, unit: Unit) -> list[Unit]:
        """Return the units that must be finished before `unit` starts."""
        needed = []
        if unit.step > 0:
            needed.append(Unit(unit.block, unit.step - 1))
        if unit.block > 0:
            needed.append(Unit(unit.block - 1, unit.step))
        if self.renews_sink(unit.block):
            needed.extend(self._needs_of_new_sink(unit))
        return needed

    def renews_sink(self, block: int) -> bool:
        """Return whether the sink is filled anew before a block: with another reference or prompt."""
        return block > 0 and (block == self.swap_block or block in self.prompt_blocks)

    def _needs_of_new_sink(self, unit: Unit) -> Iterator[Unit]:
        for steps in self.all_stages:
            if unit.step == steps[0]:
                yield Unit(unit.block - 1, steps[-1])
        if unit.step > 0:
            return
        if self.drains_at_swap:
            yield Unit(unit.block - 1, self.num_steps - 1)
        elif unit.block == self.swap_block:
            yield Unit(0, self.num_steps - 1)


class Scheduler:
    """Makes the ticks of a run: in each, the units that are ready, on every stage older blocks first.

    One lane gives the sequential order, `num_steps` lanes the full wavefront; several stages of one
    lane each, a pipeline. State: what is finished. What lies before `first_block` is taken as finished.
    """

    def __init__(self, order: Order, *, max_lanes: int, first_block: int = 0) -> None:
        """Begin with `first_block`; `max_lanes` bounds the units of a tick on each stage."""
        assert max_lanes >= 1
        self._order, self._max_lanes = order, max_lanes
        self._next_block = [first_block] * order.num_steps
        """For each step, the block that it computes next: blocks pass every step in order."""

    def ready(self, end_block: int | None = None) -> Tick:
        """Return the units of the next tick, of blocks before `end_block`."""
        found: list[Unit] = []
        for steps in reversed(self._order.all_stages):
            units = (Unit(self._next_block[step], step) for step in reversed(steps))
            ready = [unit for unit in units if self._is_ready(unit, end_block)]
            found.extend(ready[: self._max_lanes])
        return tuple(found)

    def advance(self, tick: Tick) -> None:
        """Mark these units of what was ready as finished."""
        for unit in tick:
            assert unit.block == self._next_block[unit.step], "blocks pass every step in order"
            self._next_block[unit.step] += 1

    def _is_ready(self, unit: Unit, end_block: int | None) -> bool:
        if end_block is not None and unit.block >= end_block:
            return False
        return all(need.block < self._next_block[need.step] for need in self._order.needs(unit))


def ticks(order: Order, *, max_lanes: int, first_block: int = 0) -> Iterator[Tick]:
    """Yield ticks without end, as `Scheduler` makes them."""
    scheduler = Scheduler(order, max_lanes=max_lanes, first_block=first_block)
    while True:
        tick = scheduler.ready()
        scheduler.advance(tick)
        yield tick


def lanes_of(name: ScheduleName, num_steps: int) -> int:
    """Return how many lanes a tick of the named schedule carries."""
    return num_steps if name == "wavefront" else 1
