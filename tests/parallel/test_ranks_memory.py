"""What ranks hold is given back, and a rank that runs out of memory goes on with the next video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rank_groups import SMALL, failing_at, on_ranks, settings

import lipcast
from lipcast.config.memory_options import MemoryOptions
from lipcast.errors import MemoryBudgetError
from lipcast.parallel.distributed_model import DistributedModel
from lipcast.parallel.messages import RankStats

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES: dict[str, Any] = {"num_gpus_dit": 2, "ulysses_size": 1}
WITH_DECODER: dict[str, Any] = {**STAGES, "enable_vae_parallel": True}


def held_bytes(model: lipcast.Lipcast) -> list[int]:
    """KV rings and sinks of every rank, after all messages so far."""
    assert isinstance(model.backend, DistributedModel)
    stats: list[RankStats] = model.backend.ranks.get_stats(lambda _message: None)
    found = []
    for each in stats:
        if each.memory is not None:
            parts = each.memory["vram_parts_bytes"]
            found.append(parts.get("KV rings", 0) + parts.get("sink", 0))
    return found


def test_ranks_give_memory_back(
    single: lipcast.Lipcast, decoder: Path, portrait: Path, sound: Any
) -> None:
    """After a video that is whole, one that is closed early, and one that is dropped."""
    bounded = settings(decoder, memory=MemoryOptions(vram="300MB"))
    inputs: dict[str, Any] = {"image": portrait, "audio": sound(0.96), "prompt": "calm", **SMALL}
    with on_ranks(single, bounded, **STAGES) as model:
        with model.stream(**inputs) as whole:
            assert len(list(whole)) == 2
            assert all(held > 0 for held in held_bytes(model))
        assert held_bytes(model) == [0, 0]
        with model.stream(**inputs) as closed:
            next(closed)
        assert held_bytes(model) == [0, 0]
        dropped = model.stream(**inputs)
        next(dropped)
        assert all(held > 0 for held in held_bytes(model))
        del dropped
        assert held_bytes(model) == [0, 0]


@pytest.mark.parametrize(
    ("gpus", "victim", "call"),
    [
        (STAGES, 0, "StageVideo.run"),
        (STAGES, 1, "StageVideo.run"),
        (STAGES, 1, "StageVideo.__init__"),
        (STAGES, 1, "DecoderVideo.submit"),
        (WITH_DECODER, 2, "DecoderVideo.__init__"),
        (WITH_DECODER, 2, "DecoderVideo.run"),
    ],
)
def test_the_next_video_is_made_after_a_rank_ran_out_of_memory(
    single: lipcast.Lipcast,
    decoder: Path,
    portrait: Path,
    sound: Any,
    gpus: dict[str, Any],
    victim: int,
    call: str,
) -> None:
    inputs: dict[str, Any] = {"image": portrait, "audio": sound(1.44), "prompt": "calm", **SMALL}
    expected = [block.frames for block in single.stream(**inputs)]
    start = failing_at(victim, call, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublas")
    with on_ranks(single, settings(decoder), start=start, **gpus) as model:
        with pytest.raises(MemoryBudgetError, match=rf"rank {victim} \(.*ALLOC_FAILED"):
            list(model.stream(**inputs))
        made = [block.frames for block in model.stream(**inputs)]
    assert len(made) == len(expected) == 3
    assert all((x == y).all() for x, y in zip(made, expected, strict=True))


def test_ranks_that_compute_a_pass_together_end_with_a_typed_error(
    single: lipcast.Lipcast, decoder: Path, portrait: Path, sound: Any
) -> None:
    start = failing_at(1, "StageVideo.run", "CUDA error: out of memory")
    with (
        on_ranks(single, settings(decoder), start=start, ulysses_size=2) as model,
        pytest.raises(MemoryBudgetError, match=r"rank 1 .*out of memory.*load the model"),
    ):
        list(model.stream(image=portrait, audio=sound(0.96), prompt="calm", **SMALL))
