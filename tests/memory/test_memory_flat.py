"""Many videos on one model: the memory of the process does not grow with their number."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import lipcast
from planned import manager_of

NUM_VIDEOS, NUM_WARM = 20, 5
OPTIONS: dict[str, Any] = {"size": "64*64", "infer_frames": 48, "seed": 1}


def process_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_videos_take_the_memory_of_one(
    home: Path, portrait: Path, sound: Callable[[float], Path]
) -> None:
    model = lipcast.load("tiny", device="cpu", vram="2GB")
    vram, audio = manager_of(model).device_context.vram, sound(0.4)
    loaded, session_bytes, warm_bytes = vram.used_bytes, 0, 0
    for number in range(NUM_VIDEOS):
        with model.stream(image=portrait, audio=audio, **OPTIONS) as session:
            assert sum(len(block.frames) for block in session) == 10
            session_bytes = vram.used_bytes - loaded
        assert vram.used_bytes == loaded
        if number + 1 == NUM_WARM:
            warm_bytes = process_bytes()
    grown = process_bytes() - warm_bytes
    leaked = (NUM_VIDEOS - NUM_WARM) * session_bytes
    assert leaked > 2**25, "a leak would be seen"
    assert grown < leaked / 4
