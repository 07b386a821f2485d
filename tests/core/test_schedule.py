"""Schedules are data: any one that the generator makes is right, and the checker finds wrong ones."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.core.schedule import Order, Unit, check, lanes_of, take_blocks, ticks

orders = st.builds(
    Order,
    num_steps=st.integers(1, 8),
    anchor_block=st.one_of(st.none(), st.integers(1, 6)),
)


@given(orders, st.integers(1, 8), st.integers(0, 20))
def test_every_schedule_is_right(order, max_lanes, num_blocks):
    check(
        list(take_blocks(ticks(order, max_lanes=max_lanes), num_blocks, order.num_steps)),
        order,
        num_blocks,
    )


@given(orders, st.integers(0, 12))
def test_sequential_finishes_a_block_before_the_next(order, num_blocks):
    got = list(take_blocks(ticks(order, max_lanes=1), num_blocks, order.num_steps))
    assert got == [(Unit(b, s),) for b in range(num_blocks) for s in range(order.num_steps)]


def test_wavefront_reads_each_weight_once_per_tick():
    """40 blocks of 4 steps: 43 ticks instead of 160."""
    order = Order(num_steps=4)
    got = list(take_blocks(ticks(order, max_lanes=4), 40, 4))
    assert len(got) == 43
    assert got[3] == (Unit(0, 3), Unit(1, 2), Unit(2, 1), Unit(3, 0))


def test_anchor_swap_waits_for_block_zero():
    order = Order(num_steps=4, anchor_block=1)
    first_of_anchor = next(i for i, t in enumerate(ticks(order, max_lanes=4)) if Unit(1, 0) in t)
    assert first_of_anchor == 4


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


def test_endless():
    assert len(list(islice(ticks(Order(num_steps=3), max_lanes=3), 1000))) == 1000
