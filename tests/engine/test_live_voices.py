"""The sound of live sessions with one voice and with several, without computing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fake_live import BLOCK, FakeFeatures
from lipcast.engine.live_sounds import CharactersLive
from lipcast.engine.live_timeline import LiveTimeline, SoundSettings
from lipcast.media.audio import PcmSource
from lipcast.media.voices import mixed

RATE = 16_000
BLOCK_S = BLOCK / 25


def sound(seconds: float) -> np.ndarray:
    return np.full(round(seconds * RATE), 0.5, np.float32)


def timeline(num_voices: int, encoded: Callable[[], None] = lambda: None) -> LiveTimeline:
    """`encoded` is called while the speech encoder runs."""

    class Features(FakeFeatures):
        def take(self, block: int) -> torch.Tensor | None:
            encoded()
            return super().take(block)

    settings = SoundSettings(
        lambda rate: PcmSource(rate, mux_rate=RATE), Features, torch.zeros(1, 1, BLOCK), BLOCK, RATE, 5.0,
    )  # fmt: skip
    return (
        LiveTimeline(settings) if num_voices == 1 else CharactersLive(settings, num_voices, mixed)
    )


def begin(live: LiveTimeline, block: int) -> bool:
    return live.features(block, wait=False) is not None


def made(live: LiveTimeline) -> tuple[int, float, float]:
    """Take the oldest block that has begun: its epoch, and what was said before and after it."""
    live.take_samples(BLOCK)
    block = live.take_made()
    return block.epoch, block.spoken_s(0), block.spoken_s(BLOCK)


@pytest.mark.parametrize("num_voices", [1, 2])
def test_sound_that_comes_after_an_interruption_is_not_lost(num_voices: int) -> None:
    """Also where both come while the encoder hears what was said before."""
    acts: list[Callable[[], None]] = []
    live = timeline(num_voices, lambda: acts.pop()() if acts else None)
    first, last = live.voices[0], live.voices[-1]
    first.push(sound(BLOCK_S), RATE)
    acts.append(lambda: [live.interrupt(), last.push(sound(BLOCK_S), RATE)])
    epochs = []
    for block in range(3):
        live.end_utterance()
        if begin(live, block):
            epochs.append(made(live)[0])
    assert epochs[-1] == 1 and not live.has_sound
    assert live.dropped_s <= BLOCK_S


def test_what_has_been_said_never_falls() -> None:
    live = timeline(2)
    live.idle_allowed = True
    said = []
    for block, speaker in enumerate((0, 0, None, 1, 1, 1, None)):
        if speaker is not None:
            live.voices[speaker].push(sound(BLOCK_S), RATE)
            live.end_utterance()
        assert begin(live, block)
        said += made(live)[1:]
    assert said == sorted(said) and said[-1] == pytest.approx(3 * BLOCK_S)


def test_sound_that_finds_no_room_is_counted_for_every_character() -> None:
    live = timeline(3)
    accepted = [voice.push(sound(6), RATE) / RATE for voice in live.voices]
    assert accepted == [5, 5, 5] and live.dropped_s == pytest.approx(3)
    live.interrupt()
    assert live.dropped_s == pytest.approx(18)
