"""Finite schedules, and a proof that one is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lipcast.config.schedule import Order, Tick, Unit


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
