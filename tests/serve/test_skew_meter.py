"""The measurement of picture against sound: what is an edge, and what belongs together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "soak"))
skew = pytest.importorskip("skew", reason="needs playwright and the server's packages")
DARK, BRIGHT = 100.0, 170.0


def shown(*bright_from: int, until_ms: int = 6000) -> list[tuple[int, float]]:
    """Pictures 40 ms apart; from each of the times the picture is bright for 480 ms."""
    return [
        (time, BRIGHT if any(0 <= time - begin < 480 for begin in bright_from) else DARK)
        for time in range(0, until_ms, 40)
    ]


def test_the_first_picture_is_no_flash() -> None:
    """However bright it is: what it was before it was looked at is not known."""
    pictures = shown(160, 2160, 4160)
    assert skew.flashes_of(pictures) == [160, 2160, 4160]
    assert skew.flashes_of(pictures[4:]) == [2160, 4160]
    # Taken for a flash, the first picture made the first beep of each run 100 to 190 ms early.
    beeps = [180, 2180, 4180]
    assert skew.skews_ms(skew.flashes_of(pictures), beeps) == [-20, -20, -20]


def test_a_picture_that_never_changes_has_no_flash() -> None:
    assert skew.flashes_of([]) == skew.flashes_of([(0, DARK), (40, DARK + 3), (80, DARK)]) == []
    assert skew.skews_ms([], [100]) == []


def test_a_beep_is_loud_after_quiet() -> None:
    sounds = [(0, 0.5), (4, 0.05), (8, 0.5), (12, 0.0), (16, 0.05), (20, 0.3), (24, 0.0), (28, 0.4)]
    assert skew.rises(sounds, *skew.LOUD) == [20, 28]


def test_pictures_of_speech_are_counted_until_the_last_one() -> None:
    bright = skew.bounds_of(shown(160))[1]
    assert skew.until_dark([(0, BRIGHT), (40, DARK), (80, BRIGHT), (120, DARK)], bright) == 3
    assert skew.until_dark([(0, DARK)], bright) == skew.until_dark([], bright) == 0
