"""Schedules are data: any one that the generator makes is right, and the checker finds wrong ones."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.config.schedule import Order, Scheduler, Unit, lanes_of, ticks
from schedules import check, take_blocks


@st.composite
def orders(draw):
    """Any number of steps, cut into stages anywhere, with or without a new reference."""
    num_steps = draw(st.integers(1, 8))
    cuts = sorted(draw(st.sets(st.integers(1, num_steps))) | {0, num_steps})
    stages = tuple(tuple(range(*pair)) for pair in pairwise(cuts))
    return Order(
        num_steps,
        swap_block=draw(st.one_of(st.none(), st.integers(1, 6))),
        stages=draw(st.sampled_from(((), stages))),
        drains_at_swap=draw(st.booleans()),
    )


one_stage = st.builds(
    Order, num_steps=st.integers(1, 8), swap_block=st.one_of(st.none(), st.integers(1, 6))
)


@given(orders(), st.integers(1, 8), st.integers(0, 20))
def test_every_schedule_is_right(order, max_lanes, num_blocks):
    check(
        list(take_blocks(ticks(order, max_lanes=max_lanes), num_blocks, order.num_steps)),
        order,
        num_blocks,
    )


@given(one_stage, st.integers(0, 12))
def test_sequential_finishes_a_block_before_the_next(order, num_blocks):
    got = list(take_blocks(ticks(order, max_lanes=1), num_blocks, order.num_steps))
    assert got == [(Unit(b, s),) for b in range(num_blocks) for s in range(order.num_steps)]


def test_wavefront_reads_each_weight_once_per_tick():
    """40 blocks of 4 steps: 43 ticks instead of 160."""
    order = Order(num_steps=4)
    got = list(take_blocks(ticks(order, max_lanes=4), 40, 4))
    assert len(got) == 43
    assert got[3] == (Unit(0, 3), Unit(1, 2), Unit(2, 1), Unit(3, 0))


def test_reference_swap_waits_for_block_zero():
    order = Order(num_steps=4, swap_block=1)
    first_of_reference = next(i for i, t in enumerate(ticks(order, max_lanes=4)) if Unit(1, 0) in t)
    assert first_of_reference == 4


def test_lanes_of_names():
    assert (lanes_of("sequential", 3), lanes_of("wavefront", 3)) == (1, 3)


@pytest.mark.parametrize("spoil", ["swap", "repeat", "drop", "merge"])
def test_checker_finds_mistakes(spoil):
    order = Order(num_steps=2)
    good = list(take_blocks(ticks(order, max_lanes=2), 3, 2))
    bad = {
        "swap": [good[1], good[0], *good[2:]],
        "repeat": [*good, good[-1]],
        "drop": good[:-1],
        "merge": [(*good[0], Unit(1, 0)), *good[1:]],
    }[spoil]
    with pytest.raises(ValueError):
        check(bad, order, 3)


@given(orders(), st.integers(1, 3), st.data())
def test_blocks_that_may_not_start_yet_hold_up_no_other(order, max_lanes, data):
    """Sound that comes late: what is under way goes on, and everything runs once in the end."""
    scheduler, done, num_blocks, end = Scheduler(order, max_lanes=max_lanes), [], 5, 0
    while len([u for tick in done for u in tick]) < num_blocks * order.num_steps:
        tick = scheduler.ready(end)
        assert all(unit.block < end for unit in tick)
        if tick:
            scheduler.advance(tick)
            done.append(tick)
        else:
            under_way = {u.block for t in done for u in t}
            assert all(Unit(b, order.num_steps - 1) in sum(done, ()) for b in under_way)
            end = min(num_blocks, end + 1)
        if data.draw(st.booleans()):
            end = min(num_blocks, end + 1)
    check(done, order, num_blocks)


def test_pipeline_keeps_every_stage_busy_across_a_new_reference():
    """3 steps on 3 stages: the swap block enters as soon as block 0 is clean, and nobody waits."""
    order = Order(3, swap_block=4, stages=((0,), (1,), (2,)))
    got = list(islice(ticks(order, max_lanes=1), 20))
    assert all(len(tick) == 3 for tick in got[2:])
    drained = Order(3, 4, order.stages, drains_at_swap=True)
    assert min(len(tick) for tick in list(islice(ticks(drained, max_lanes=1), 20))[2:]) < 3


def test_a_stage_of_two_steps_takes_one_lane_at_a_time_or_both():
    order = Order(3, stages=((0, 1), (2,)))
    alone = list(islice(ticks(order, max_lanes=1), 4))
    assert alone[2] == (Unit(0, 2), Unit(1, 0)) and alone[3] == (Unit(1, 1),)
    both = list(islice(ticks(order, max_lanes=2), 4))
    assert both[3] == (Unit(1, 2), Unit(2, 1), Unit(3, 0))


def test_endless():
    assert len(list(islice(ticks(Order(num_steps=3), max_lanes=3), 1000))) == 1000
