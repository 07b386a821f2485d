"""The way of a text with the embedded model: speech, live session, transformer, pictures with their sound."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import lipcast
from fake_speech import FakeTTS
from lipcast.serve.metrics import Metrics
from lipcast.serve.talk import Talk
from lipcast.speech.services import SpeechServices
from sounds import EXAMPLES


@pytest.mark.slow
def test_a_text_becomes_pictures_with_its_sound(quick: lipcast.Lipcast) -> None:
    live = quick.live(
        image=EXAMPLES / "portrait_0.png",
        idle=False,
        size="64*64",
        infer_frames=12,
        sample_steps=1,
    )
    services = SpeechServices(tts=FakeTTS())

    async def work() -> list[lipcast.AVFrame]:
        talk = Talk(live, services, metrics=Metrics(lambda: 0), label="s1")
        done = asyncio.Event()
        talk.emit = lambda event: done.set() if event.get("state") == "waiting" else None
        talk.say("Hello there.")
        await done.wait()
        live.finish()
        frames = [frame async for frame in live]
        await talk.close()
        return frames

    with live:
        frames = asyncio.run(work())
    assert len(frames) == 24 and all(frame.is_speech for frame in frames)
    sound = np.concatenate([frame.sound for frame in frames])[:, 0]
    assert 0.45 < np.count_nonzero(np.abs(sound) > 0.02) / 48_000 < 0.55
    assert frames[0].picture.shape == (64, 64, 3)
