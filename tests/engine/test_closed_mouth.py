"""The mouth of a live session is closed within one block of an interruption, in pictures."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from numpy.typing import NDArray

import lipcast
from fake_live import BLOCK
from lipcast.lab.footage import Footage
from lipcast.lab.mouth import mouth_of_drawing
from pixels import until_closed
from sounds import EXAMPLES

OPEN = 0.5


def voice(name: str) -> tuple[NDArray[np.int16], int]:
    with wave.open(str(EXAMPLES / name), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


@pytest.mark.slow
def test_the_mouth_closes_within_one_block_of_an_interruption(tiny: lipcast.Lipcast) -> None:
    samples, rate = voice("speech_b_male.wav")
    frames: list[lipcast.AVFrame] = []
    with tiny.live(image=EXAMPLES / "portrait_0.png", size="192*192", sample_steps=1) as live:
        live.push_audio(samples[11 * rate // 25 : 33 * rate // 25], sample_rate=rate)
        for frame in live:
            frames.append(frame)
            if sum(each.is_speech for each in frames) == BLOCK:  # in the middle of a vowel
                break
        assert live.interrupt() == 1
        spoken = len(frames)
        for frame in live:
            frames.append(frame)
            if len(frames) == spoken + BLOCK:
                break
    assert {frame.epoch for frame in frames[spoken:]} == {1}
    assert not any(frame.sound.any() for frame in frames[spoken:])
    found = mouth_of_drawing(Footage.of_frames(frame.picture for frame in frames))
    assert found.opening is not None, found.reason
    assert found.opening[spoken - 1] > OPEN, "the mouth was not open when it was interrupted"
    assert until_closed(found.opening[spoken:]) < BLOCK, found.opening[spoken:].round(2)


def test_a_mouth_that_opens_again_is_not_closed() -> None:
    assert until_closed(np.array([0.9, 0.4, 0.2, 0.1])) == 2
    assert until_closed(np.array([0.1, 0.1, 0.6])) == 3
    assert until_closed(np.array([0.1, 0.2])) == 0
