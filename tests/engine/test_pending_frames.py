"""Frames that are decoded beside the ticks: same video, same order, no waiting where nobody works.

A GPU decodes on its own stream; here the frames are there at once and merely say that they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lipcast.engine.session import Session
from sounds import syllables

SMALL: dict[str, Any] = {"size": "64*64", "infer_frames": 12}


class Late:
    """Frames of one block that never say that they are ready."""

    decode_s = 0.0

    def __init__(self, log: list[str], number: int, frames: np.ndarray | Exception) -> None:
        self._log, self._number, self._frames = log, number, frames

    @property
    def is_ready(self) -> bool:
        return False

    def collect(self) -> np.ndarray:
        self._log.append(f"collect {self._number}")
        if isinstance(self._frames, Exception):
            raise self._frames
        return self._frames


class LateDecoder:
    """A decoder whose frames come late; block `broken` fails while it is decoded."""

    def __init__(self, decoder: Any, log: list[str], *, broken: int | None) -> None:
        self._decoder, self._log, self._broken = decoder, log, broken
        self._count = 0

    def submit(self, latent: torch.Tensor) -> Late:
        number, self._count = self._count, self._count + 1
        self._log.append(f"submit {number}")
        frames = self._decoder.submit(latent).collect()
        failed = number == self._broken
        return Late(self._log, number, RuntimeError("no picture") if failed else frames)


def make_late(session: Session, *, broken: int | None = None) -> list[str]:
    """Let the frames of a session come late; what happens, in order."""
    log: list[str] = []
    run = session._executor.run

    def logged(tick: Any) -> Any:
        log.append("tick")
        return run(tick)

    session._executor.run = logged  # type: ignore[method-assign]
    session._decoder = LateDecoder(session._decoder, log, broken=broken)  # type: ignore[assignment]
    return log


@pytest.fixture(params=["sequential", "wavefront"])
def options(request, portrait, sound) -> dict[str, Any]:
    return {"image": portrait, "audio": sound(1.4), "schedule": request.param, **SMALL}


def test_the_same_video_one_tick_later(quick, options):
    expected = list(quick.stream(**options))
    session = quick.stream(**options)
    log = make_late(session)
    blocks = list(session)
    assert [b.index for b in blocks] == [0, 1, 2]
    for got, other in zip(blocks, expected, strict=True):
        assert np.array_equal(got.frames, other.frames) and np.array_equal(got.audio, other.audio)
    assert session.report()["num_blocks"] == 3
    for number in range(2):
        begin, end = log.index(f"submit {number}"), log.index(f"collect {number}")
        assert log[begin + 1 : end] == ["tick"], "collected once the next tick is under way"
    assert log[-2:] == ["submit 2", "collect 2"]


def test_an_error_surfaces_where_its_frames_are_due(quick, options):
    session = quick.stream(**options)
    log = make_late(session, broken=1)
    assert next(session).index == 0
    with pytest.raises(RuntimeError, match="no picture"):
        next(session)
    assert log[-1] == "collect 1"


def test_close_drops_what_is_pending(quick, options):
    session = quick.stream(**options)
    log = make_late(session)
    next(session)
    while len(session._pending) == 0:
        session._step(wait=True)
    assert session.report()["num_blocks"] == 1
    session.close()
    assert log[-1] == "submit 1" and not session._pending


def live_blocks(live: Any, log: list[str]) -> Iterator[list[str]]:
    """Push three blocks of sound, one by one; what each push leads to."""
    pcm = syllables(1.44)
    for begin in range(0, len(pcm), 7680):
        live.push(pcm[begin : begin + 7680])
        before = len(log)
        yield [f"frames {block.index}" for block in live.ready()] + log[before:]


def test_live_frames_do_not_wait_for_more_sound(quick, portrait):
    """What `ready` gives after each push is what it gives where frames are there at once."""
    with quick.session(image=portrait, **SMALL) as plain:
        expected = [[b for b in e if b.startswith("f")] for e in live_blocks(plain, [])]
    with quick.session(image=portrait, **SMALL) as live:
        log = make_late(live._session)
        events = list(live_blocks(live, log))
        assert [[b for b in e if b.startswith("f")] for e in events] == expected
        live.finish()
        rest = [block.index for block in live]
    made = [name for each in expected for name in each]
    assert [f"frames {i}" for i in range(3)] == made + [f"frames {i}" for i in rest]
    assert not live._session._pending
