"""A rank that is gone ends all of them, says which one it was, and leaves what is finished playable."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from rank_groups import SMALL, on_ranks, settings

import lipcast
from lipcast.api import save_blocks
from lipcast.errors import CheckpointError, RankError, SessionFailedError
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.parallel.messages import GetStats
from lipcast.parallel.roles import roles_of

LAYOUTS = (
    {"num_gpus_dit": 2, "ulysses_size": 1, "enable_vae_parallel": True},
    {"num_gpus_dit": 3},
    {"ulysses_size": 2},
    {"num_gpus_dit": 2, "ulysses_size": 1, "dit_fsdp": True},
)
ENDS_WITHIN_S = 120
"""A rank that waited for one that is gone would wait for ever."""


def backend_of(model: lipcast.Lipcast) -> DistributedModel:
    assert isinstance(model.backend, DistributedModel)
    return model.backend


def processes_of(model: lipcast.Lipcast) -> list[psutil.Process]:
    return [psutil.Process(member.process.pid) for member in backend_of(model).ranks.ranks]


def num_playable(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 8))]
)
def test_a_rank_that_is_killed_or_terminated_ends_all(
    single: lipcast.Lipcast, decoder: Path, portrait: Path, sound: Any, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    number = (signal.SIGKILL, signal.SIGTERM)[(seed + seed // 4) % 2]
    gpus, output = LAYOUTS[seed % len(LAYOUTS)], tmp_path / "out.mp4"
    model = on_ranks(single, settings(decoder), **gpus)
    ranks, written = processes_of(model), 0
    victim = chance.randrange(len(ranks))
    session = model.stream(image=portrait, audio=sound(9.6), prompt="calm", **SMALL)
    last, after_s = chance.randrange(3), chance.uniform(0, 0.3)
    killed_at_s = float("inf")
    with pytest.raises(RankError) as raised:
        for block in save_blocks(session, output):
            written += len(block.frames)
            if block.index == last:
                time.sleep(after_s)
                ranks[victim].send_signal(number)
                killed_at_s = time.monotonic()
    assert time.monotonic() - killed_at_s < ENDS_WITHIN_S
    assert f"rank {victim} " in str(raised.value) and number.name in str(raised.value)
    assert str(roles_of(backend_of(model).plan.layout)[victim]) in str(raised.value)
    _, alive = psutil.wait_procs(ranks, timeout=ENDS_WITHIN_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert num_playable(output) == written > 0
    with pytest.raises(SessionFailedError, match=rf"{number.name}.*open a new one"):
        next(session)


def test_ranks_end_when_nobody_makes_a_video_any_more(
    single: lipcast.Lipcast, decoder: Path, portrait: Path, sound: Any
) -> None:
    """As when the process that makes the video is killed: its sockets close, and that is all."""
    model = on_ranks(single, settings(decoder), num_gpus_dit=2, ulysses_size=1)
    ranks = processes_of(model)
    session = model.stream(image=portrait, audio=sound(9.6), prompt="calm", **SMALL)
    next(session)
    for member in backend_of(model).ranks.ranks:
        member.link.close()
    _, alive = psutil.wait_procs(ranks, timeout=ENDS_WITHIN_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_an_error_of_a_rank_is_told_with_its_name(single: lipcast.Lipcast, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank 1 \(stage 1, .*missing: no such file"):
        on_ranks(single, settings(tmp_path / "missing"), num_gpus_dit=2, ulysses_size=1)


def test_the_report_of_a_rank_is_found_where_sending_to_it_fails(
    single: lipcast.Lipcast, decoder: Path
) -> None:
    """It has reported, closed its connection and ended before anybody read the report."""
    model = on_ranks(single, settings(decoder), num_gpus_dit=2, ulysses_size=1)
    ranks = backend_of(model).ranks
    process = processes_of(model)[1]
    ranks.send(object(), lambda role: role.rank == 1)
    process.wait(ENDS_WITHIN_S)
    with pytest.raises(RankError, match=r"rank 1 .*AssertionError: expected a message to a rank"):
        while True:
            ranks.send(GetStats(0))
