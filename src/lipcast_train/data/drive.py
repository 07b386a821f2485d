"""From a voice to the movement of a face: the truth that a trained model is compared with.

Input: a sound, a mood and a seed. Output: a `Movement`. The mouth follows from the sound alone; brows, nods
and blinks follow its stress and pauses; gaze and sway come from the seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast_train.data.clips import MouthTrack
from lipcast_train.data.hearing import Heard, hear
from lipcast_train.data.movement import Curve, Movement
from lipcast_train.data.words import EXPRESSIONS, MOTIONS, Expression, Mood

_BLINK = np.array([0.65, 0.10, 0.0, 0.25, 0.70], np.float32)
"""Lids over the frames of a blink."""
_ONSET_FRAMES = 12
"""An expression comes on over the first block of a video, which begins at rest."""
_QUIET = 0.06


def drive(wave_N: NDArray[np.float32], mood: Mood, seed: int) -> Movement:
    """Return the movement of a person who speaks a sound in a mood."""
    heard = hear(wave_N)
    num_frames = len(heard.loudness_T)
    rng = np.random.default_rng((seed, 2))
    expression, amount = EXPRESSIONS[mood.expression], MOTIONS[mood.motion]
    onset = _onset(num_frames)
    stress = _stress(heard.loudness_T)
    lids = 1 + (expression.lids - 1) * onset
    return Movement(
        mouth=mouth_track(heard, expression),
        corners_T=expression.corners * onset,
        brows_T=expression.brows * onset + 0.32 * min(amount, 1.6) * stress,
        brow_tilt_T=expression.brow_tilt * onset,
        lids_T=lids * _blinks(heard.loudness_T, rng),
        gaze_x_T=0.55 * min(amount, 1.5) * _glances(num_frames, rng),
        gaze_y_T=0.35 * min(amount, 1.5) * _glances(num_frames, rng),
        **_sway(stress, onset, amount, rng),
    )


def mouth_track(heard: Heard, expression: Expression | None = None) -> MouthTrack:
    """Return the mouth of what is heard."""
    expression = expression or Expression()
    voiced = heard.loudness_T
    opening = voiced**1.5 * (0.72 + 0.33 * heard.openness_T)
    opening = np.clip(expression.opening * opening + 0.14 * heard.hiss_T, 0, 1)
    rounding = np.clip(1.5 * voiced * (0.62 - heard.frontness_T) * (1 - 0.6 * heard.hiss_T), 0, 1)
    width = np.clip(0.5 + 0.8 * voiced * (heard.frontness_T - 0.5) + 0.25 * heard.hiss_T, 0, 1)
    teeth = np.clip(np.maximum(heard.hiss_T, 0.55 * opening + 0.35 * (width - 0.5)), 0, 1)
    tongue = np.clip(voiced * (1 - heard.openness_T) * (1 - rounding), 0, 1)
    shapes = (opening, width, rounding, teeth, tongue)
    return MouthTrack(*(shape.astype(np.float32) for shape in shapes))


def _onset(num_frames: int) -> Curve:
    share = np.clip((np.arange(num_frames) + 1) / _ONSET_FRAMES, 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


def _stress(loudness_T: Curve) -> Curve:
    """Return how much louder it is than a moment ago, 0 to 1, as a spring that follows."""
    stress = np.zeros(len(loudness_T), np.float32)
    slow = fast = value = 0.0
    for frame, loudness in enumerate(loudness_T.tolist()):
        slow += (loudness - slow) / 20
        fast += (loudness - fast) / 4
        value += (max(0.0, 2.5 * (fast - slow)) - value) / 3
        stress[frame] = min(1.0, value)
    return stress


def _blinks(loudness_T: Curve, rng: np.random.Generator) -> Curve:
    """Return the lids: a blink where a phrase ends, and every few seconds besides."""
    lids = np.ones(len(loudness_T), np.float32)
    due, frame = int(rng.integers(15, 90)), 3
    while frame < len(lids):
        pauses = loudness_T[frame] < _QUIET <= loudness_T[frame - 3]
        if frame >= due or (pauses and due - frame < 55):
            count = min(len(_BLINK), len(lids) - frame)
            lids[frame : frame + count] = _BLINK[:count]
            due = frame + int(rng.integers(50, 130))
            frame += len(_BLINK)
        frame += 1
    return lids


def _glances(num_frames: int, rng: np.random.Generator) -> Curve:
    """Return a gaze that jumps now and then, mostly straight ahead; it begins there."""
    gaze, frame, target = np.zeros(num_frames, np.float32), int(rng.integers(10, 40)), 0.0
    while frame < num_frames:
        target = 0.0 if target else float(rng.uniform(-1, 1))
        gaze[frame:] = target
        frame += int(rng.integers(12, 50))
    return gaze


def _sway(stress: Curve, onset: Curve, amount: float, rng: np.random.Generator) -> dict[str, Curve]:
    """Return the movement of the head: slow waves, and a nod with each stress."""
    sizes = {"yaw_T": 0.30, "pitch_T": 0.15, "roll_T": 0.028, "shift_x_T": 0.035, "shift_y_T": 0.02}
    waves = {
        name: (size * amount * onset * _wave(len(stress), rng)).astype(np.float32)
        for name, size in sizes.items()
    }
    waves["pitch_T"] = waves["pitch_T"] + np.float32(0.22 * amount) * stress
    waves["shift_y_T"] = waves["shift_y_T"] + np.float32(0.02 * amount) * stress
    return waves


def _wave(num_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    times = np.arange(num_frames) / VIDEO_FPS
    total = np.zeros(num_frames)
    for weight, low, high in ((0.6, 0.12, 0.3), (0.3, 0.35, 0.7), (0.1, 0.9, 1.4)):
        phase = rng.uniform(0, 2 * np.pi)
        rate = 2 * np.pi * rng.uniform(low, high)
        total += weight * (np.sin(rate * times + phase) - np.sin(phase))
    return total
