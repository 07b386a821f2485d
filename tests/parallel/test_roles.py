"""Who does what, as data; and where the sound is heard."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcast.cli.plan import plan_request
from lipcast.parallel.distributed_model import SECOND_CONTEXT_BYTES, speech_device
from lipcast.parallel.roles import decoder_rank, num_dit_ranks, roles_of
from lipcast.planning.layouts import Layout, LayoutConstraints, plan_layouts

layouts = st.builds(
    Layout,
    stages=st.integers(1, 4),
    ulysses=st.integers(1, 4),
    sharded=st.booleans(),
    vae_rank=st.booleans(),
)


@given(layouts, st.integers(4, 8))
def test_every_step_and_every_block_have_their_place(layout: Layout, num_steps: int) -> None:
    roles = roles_of(layout)
    assert [role.rank for role in roles] == list(range(layout.num_gpus))
    first_ranks = [role for role in roles if role.stage is not None and role.ulysses_rank == 0]
    steps = [step for role in first_ranks for step in role.steps(num_steps)]
    assert steps == list(range(num_steps))
    assert sum(role.decodes for role in roles) == 1
    for role in roles:
        if role.next_rank is not None:
            assert roles[role.next_rank].prev_rank in (role.rank, decoder_source(layout))
        if role.stage is not None:
            assert role.rank in role.stage_ranks and len(role.stage_ranks) == layout.ulysses
            assert role.share(num_steps).num_steps == len(role.steps(num_steps))
    # A block passes one rank of every stage, and then the decoder.
    path, at = [0], roles[0]
    while at.next_rank is not None:
        at = roles[at.next_rank]
        path.append(at.rank)
    assert path[-1] == decoder_rank(layout) and len(path) == layout.stages + layout.vae_rank
    assert num_dit_ranks(layout) == layout.num_gpus - layout.vae_rank


def decoder_source(layout: Layout) -> int:
    return (layout.stages - 1) * layout.ulysses


@pytest.mark.parametrize("vae_rank", [True, False])
def test_sound_is_heard_where_there_is_room(vae_rank: bool) -> None:
    request = plan_request({"gpu": "h100", "ram": "512GB"})
    gpu, constraints = torch.device("cuda"), LayoutConstraints(vae_rank=vae_rank)
    plan = plan_layouts(request, 3, constraints)[0]
    assert speech_device(gpu, plan, request) == torch.device("cuda", decoder_rank(plan.layout))
    assert speech_device(torch.device("cpu"), plan, request) == torch.device("cpu")
    full = plan.ranks[-1].vram_bytes + SECOND_CONTEXT_BYTES - 1
    tight = replace(request, budget=replace(request.budget, vram_bytes=full))
    assert speech_device(gpu, plan, tight) == torch.device("cpu")
