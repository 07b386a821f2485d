"""Which (block, step) units run together, as data.

Unit (b, s) needs (b, s-1), whose latents it continues, and (b-1, s), whose keys and values lie in
the ring of step s. The first unit of the anchor block also needs every block before it finished: the
first latent of block 0 becomes the new reference, and with no block under way that refers to the old
one, one sink is in memory at a time. Any list of ticks that respects this gives the same latents.

Input: number of steps, the anchor block, the lanes a tick may carry. Output: ticks, lazily and
without end; `take_blocks` cuts them to a length, `check` proves a list right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lipcast.core.request import ScheduleName


class Unit(NamedTuple):
    """One denoising step of one block."""

    block: int
    step: int


Tick = tuple[Unit, ...]
"""Units that one pass of the transformer computes together."""


@dataclass(frozen=True, slots=True)
class Order:
    """The dependencies of a run. `anchor_block` is None where the anchor is never replaced."""

    num_steps: int
    anchor_block: int | None = None

    def needs(self, unit: Unit) -> list[Unit]:
        """The units that must be finished before `unit` starts."""
        needed = []
        if unit.step > 0:
            needed.append(Unit(unit.block, unit.step - 1))
        if unit.block > 0:
            needed.append(Unit(unit.block - 1, unit.step))
        if unit.step == 0 and self.anchor_block is not None and unit.block == self.anchor_block:
            needed.append(Unit(unit.block - 1, self.num_steps - 1))
        return needed


def ticks(order: Order, *, max_lanes: int, first_block: int = 0) -> Iterator[Tick]:
    """Ticks without end: in each, the units that are ready, older blocks first.

    One lane gives the sequential order, `num_steps` lanes the full wavefront. What lies before
    `first_block` is taken as finished.
    """
    assert max_lanes >= 1
    next_block = [first_block] * order.num_steps
    """For each step, the block that it computes next: blocks pass every step in order."""

    def finished(unit: Unit) -> bool:
        return unit.block < next_block[unit.step]

    while True:
        candidates = (Unit(next_block[s], s) for s in reversed(range(order.num_steps)))
        ready = [u for u in candidates if all(finished(n) for n in order.needs(u))][:max_lanes]
        for unit in ready:
            next_block[unit.step] += 1
        yield tuple(ready)


def lanes_of(name: ScheduleName, num_steps: int) -> int:
    """How many lanes a tick of the named schedule carries."""
    return num_steps if name == "wavefront" else 1


def take_blocks(endless: Iterable[Tick], num_blocks: int, num_steps: int) -> Iterator[Tick]:
    """The ticks of the first `num_blocks` blocks; what is left of a tick stays together."""
    remaining = num_blocks * num_steps
    for tick in endless:
        if remaining <= 0:
            return
        kept = tuple(unit for unit in tick if unit.block < num_blocks)
        remaining -= len(kept)
        if kept:
            yield kept


def check(schedule: Iterable[Tick], order: Order, num_blocks: int) -> None:
    """Raise ValueError unless every unit runs once, after all it needs, in an earlier tick."""
    done: set[Unit] = set()
    for number, tick in enumerate(schedule):
        if len({unit.step for unit in tick}) < len(tick):
            raise ValueError(f"tick {number}: two units share the ring of one step: {tick}")
        for unit in tick:
            missing = [n for n in order.needs(unit) if n not in done]
            if missing or unit in done:
                raise ValueError(f"tick {number}: {unit} runs again or before {missing}")
        done.update(tick)
    expected = {Unit(b, s) for b in range(num_blocks) for s in range(order.num_steps)}
    if done != expected:
        raise ValueError(f"expected {len(expected)} units, got {len(done)}")
