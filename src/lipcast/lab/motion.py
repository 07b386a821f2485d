"""Motion of a video: speed and jerk of the head, frozen frames, jumps, and whether it dies down.

Input: a `Survey`. Nothing here knows what a face is.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from lipcast.lab.footage import Survey
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.pictures import Floats

GROUP = "motion"
FROZEN_LEVELS = 0.05
"""Grey levels of mean change up to which a frame repeats the one before: x264 at crf 18 leaves less
in a repeated frame, and the stillest moment of a talking portrait of the embedded model 0.2."""
JUMP_FACTOR = 6.0
"""A jump changes so many times more than the 90th percentile of the frames around it; a blink of the
embedded model changes 2 times more."""
JUMP_LEVELS = 2.0
_AROUND = 12
_DYNAMIC_SHARE = 0.05


def frozen_frames(survey: Survey) -> NDArray[np.intp]:
    """Return the indices of the frames that repeat the one before them."""
    return np.nonzero(survey.changes < FROZEN_LEVELS)[0] + 1


def jumps(survey: Survey) -> list[int]:
    """Return the indices of the frames that do not follow from the one before: cuts, and glitches of a frame.

    Judged against the 90th percentile of the changes of the 12 frames on both sides.
    """
    changes = survey.changes
    found = []
    for i, change in enumerate(changes):
        around = np.concatenate(
            [changes[max(0, i - _AROUND) : i], changes[i + 1 : i + 1 + _AROUND]]
        )
        usual = float(np.quantile(around, 0.9)) if len(around) else float("inf")
        if change > max(JUMP_LEVELS, JUMP_FACTOR * usual):
            found.append(i + 1)
    return found


def motion(survey: Survey, *, fps: float) -> list[Metric]:
    """Measure whether the picture moves, evenly, and goes on doing so.

    frozen frames: share of frames whose mean change is under 0.05 grey levels; 0..100 %, lower is
    better. longest freeze: seconds, lower is better. jumps: frames that change 6 times more than the
    frames around them and by over 2 grey levels; a count, 0 is best. change: median of the mean
    absolute difference between frames, grey levels; neither way is better. Source: this project.
    """
    if survey.num_frames < 3:
        return [unavailable(GROUP, "motion", f"{survey.num_frames} frames; at least 3 are needed")]
    frozen, cuts = frozen_frames(survey), jumps(survey)
    share = 100 * len(frozen) / (survey.num_frames - 1)
    where = f"at frames {', '.join(map(str, cuts[:8]))}" if cuts else ""
    return [
        measured(GROUP, "frozen frames", share, "%", "lower"),
        measured(GROUP, "longest freeze", _longest_run(frozen) / fps, "s", "lower"),
        measured(GROUP, "jumps", len(cuts), "", "zero", note=where),
        measured(GROUP, "change", float(np.median(survey.changes)), "levels", "neither"),
        *_head(survey, fps=fps),
        *_dynamics(survey, fps=fps),
    ]


def _longest_run(indices: NDArray[np.intp]) -> int:
    longest = run = 0
    for i, index in enumerate(indices):
        run = run + 1 if i and index == indices[i - 1] + 1 else 1
        longest = max(longest, run)
    return longest


def _head(survey: Survey, *, fps: float) -> list[Metric]:
    """Measure speed and jerk of the whole picture's shift, which in a portrait is the head's.

    head speed: median length of the shift between frames; % of the short side per second; neither
    way is better. head jerk: root mean square of the third derivative of the position, % of the short
    side per s^3, lower is smoother. Source: shift by least squares on the picture's gradients (Lucas
    and Kanade 1981, one window); jerk as a measure of smoothness: Flash and Hogan 1985.
    """
    shifts = shifts_of(survey.thumbs) * (100 / min(survey.thumbs.shape[1:]))
    speed = np.linalg.norm(shifts, axis=1) * fps
    result = [measured(GROUP, "head speed", float(np.median(speed)), "%/s", "neither")]
    if len(shifts) < 4:
        return [*result, unavailable(GROUP, "head jerk", "fewer than 5 frames")]
    jerk = np.diff(shifts, n=2, axis=0) * fps**3
    rms = float(np.sqrt((jerk**2).sum(axis=1).mean()))
    return [*result, measured(GROUP, "head jerk", rms, "%/s^3", "lower")]


def shifts_of(thumbs: Floats) -> NDArray[np.float64]:
    """Return the shift of each picture down and right of the one before, pixels, [n - 1, 2].

    Blurred first: differences between neighbours see sharp edges too flat, and shifts then too long.
    """
    found = []
    for before, after in itertools.pairwise(map(_smooth, thumbs)):
        down, right = np.gradient((before + after).astype(np.float64) / 2)
        change = (after - before).astype(np.float64)
        gram = np.array([
            [(down * down).sum(), (down * right).sum()],
            [(down * right).sum(), (right * right).sum()],
        ])  # fmt: skip
        gram += np.eye(2) * 1e-6
        against = np.array([(down * change).sum(), (right * change).sum()])
        found.append(-np.linalg.solve(gram, against))
    return np.array(found)


def _smooth(picture: Floats) -> Floats:
    """Blur by a binomial over 9 pixels each way."""
    for _ in range(4):
        for axis in (0, 1):
            one, other = np.roll(picture, 1, axis), np.roll(picture, -1, axis)
            picture = np.float32(0.5) * picture + np.float32(0.25) * (one + other)
    return picture[4:-4, 4:-4]


def dynamic_degree(thumbs: Floats) -> float:
    """Return the standard deviation over time, of the 5 % of the picture that vary most; grey levels."""
    spread = thumbs.std(axis=0).ravel()
    busiest = np.sort(spread)[-max(1, round(_DYNAMIC_SHARE * spread.size)) :]
    return float(busiest.mean())


def _dynamics(survey: Survey, *, fps: float) -> list[Metric]:
    """Measure how much moves at all, and whether that dies down.

    dynamic degree: see the function; 0..127 grey levels, higher is livelier. dynamics kept: that of
    the last quarter over that of the first; 0.., 1 is best, well under 1 is the collapse into
    stillness. Source: the dynamic degree of VBench (Huang et al. 2024: the 5 % that flow most), with
    variation in place of optical flow.
    """
    degree = dynamic_degree(survey.thumbs)
    result = [measured(GROUP, "dynamic degree", degree, "levels", "higher")]
    quarter = survey.num_frames // 4
    if quarter < fps:
        reason = f"quarters of {quarter} frames; at least a second each is needed"
        return [*result, unavailable(GROUP, "dynamics kept", reason)]
    first = dynamic_degree(survey.thumbs[:quarter])
    last = dynamic_degree(survey.thumbs[-quarter:])
    kept = last / first if first > 0 else float("nan")
    return [*result, measured(GROUP, "dynamics kept", kept, "", "higher", note="1 is best")]
