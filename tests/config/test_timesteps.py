"""Sigmas of the flow schedule and the randomness that is a function of position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcast.config.randomness import FixedDistance, SeededDistance
from lipcast.config.timesteps import flow_schedule


def test_published_four_steps():
    schedule = flow_schedule(4)
    assert schedule.sigmas == pytest.approx((1, 0.857692301, 0.602150559, 0.008928572, 0), abs=1e-8)
    assert schedule.timesteps == pytest.approx((1000, 857.692322, 602.150574, 8.928572), abs=1e-5)


@given(st.integers(1, 8), st.floats(1, 12), st.booleans())
def test_sigmas_fall_from_one_to_zero(num_steps, shift, fold):
    schedule = flow_schedule(num_steps, shift=shift, fold_last_step=fold)
    assert schedule.sigmas[0] == 1 and schedule.sigmas[-1] == 0
    assert all(a > b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))
    assert schedule.num_steps == max(1, num_steps - fold)


def test_folding_keeps_the_other_steps():
    assert flow_schedule(4, fold_last_step=True).timesteps == flow_schedule(4).timesteps[:3]


@given(st.integers(0, 2**63), st.integers(0, 10**7))
def test_distance_is_a_function_of_seed_and_block(seed, block):
    draw = SeededDistance(seed)
    assert 4 <= draw(block, 0) <= 30
    assert len({draw(block, step) for step in range(4)}) == 1
    assert SeededDistance(seed)(block, 0) == draw(block, 0)


def test_distances_vary():
    draw = SeededDistance(420)
    assert {draw(block, 0) for block in range(500)} == set(range(4, 31))
    assert FixedDistance(7)(3, 2) == 7
