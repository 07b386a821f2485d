"""Drift of the picture: colours and likeness over time, and flicker.

Input: a `Survey`, and the portrait where there is one, as thumbnail and mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipcast.lab.footage import THUMB_SIDE, Survey
from lipcast.lab.metric import Metric, measured, unavailable
from lipcast.lab.pictures import Floats, ssim, thumbnail
from lipcast.media.image import ImageSource, fit_portrait, load_portrait

GROUP = "drift"
FLICKER = "flicker"


@dataclass(frozen=True, slots=True)
class Likeness:
    """Picture that a video is compared with."""

    thumb: Floats
    colour: Floats


def portrait_likeness(portrait: ImageSource, *, size: tuple[int, int]) -> Likeness:
    """Return the portrait, cut to `size` (height, width) as the engine cuts it. Raises InputError."""
    pixels = fit_portrait(load_portrait(portrait), *size)
    colour = pixels.reshape(-1, 3).astype(np.float32).mean(axis=0)
    return Likeness(thumbnail(pixels, THUMB_SIDE), colour)


def colour_curve(survey: Survey, colour: Floats) -> NDArray[np.float64]:
    """Return the distance of each frame's mean colour from `colour`: Euclid in RGB, levels, [n]."""
    distances: NDArray[np.float64] = np.linalg.norm(survey.colours - colour, axis=1)
    return distances.astype(np.float64)


def likeness_curve(survey: Survey, thumb: Floats) -> NDArray[np.float64]:
    """Return the SSIM of each frame's thumbnail with `thumb`, [n]."""
    return np.array([ssim(picture, thumb) for picture in survey.thumbs])


def drift(survey: Survey, portrait: Likeness | None, *, fps: float) -> list[Metric]:
    """Measure how far colours and likeness move away from the first second and from the portrait.

    colour drift: distance between the mean colours of the last and the first second; Euclid in RGB,
    0..442 levels, lower is better. colour slope: least-squares slope of the distance to the first
    second's colour; levels/s, 0 is best. likeness to the first second: SSIM (Wang et al. 2004) of the
    last second's mean picture with that of the first; -1..1, higher is better. likeness to the
    portrait: mean over the last second of the SSIM with it; colour off the portrait: mean distance of
    the last second's colour. SSIM is on grey thumbnails of 64 pixels. Source: this project.
    """
    second = max(1, round(fps))
    if survey.num_frames < 2 * second:
        reason = f"{survey.num_frames} frames; two seconds are needed"
        names = ("colour drift", "colour slope", "likeness to the first second")
        found = [unavailable(GROUP, name, reason) for name in names]
    else:
        found = _against_first_second(survey, second, fps=fps)
    return [*found, *_against_portrait(survey, portrait, second)]


def _against_first_second(survey: Survey, second: int, *, fps: float) -> list[Metric]:
    first = survey.colours[:second].mean(axis=0)
    last = survey.colours[-second:].mean(axis=0)
    distances = colour_curve(survey, first)
    slope = float(np.polyfit(np.arange(len(distances)) / fps, distances, 1)[0])
    start, end = (part.mean(axis=0) for part in (survey.thumbs[:second], survey.thumbs[-second:]))
    name = "likeness to the first second"
    return [
        measured(GROUP, "colour drift", float(np.linalg.norm(last - first)), "levels", "lower"),
        measured(GROUP, "colour slope", slope, "levels/s", "zero"),
        measured(GROUP, name, ssim(start, end), "SSIM", "higher"),
    ]


def _against_portrait(survey: Survey, portrait: Likeness | None, second: int) -> list[Metric]:
    names = ("likeness to the portrait", "colour off the portrait")
    if portrait is None:
        return [unavailable(GROUP, name, "no portrait was given (--reference)") for name in names]
    likeness = np.mean([ssim(picture, portrait.thumb) for picture in survey.thumbs[-second:]])
    distance = colour_curve(survey, portrait.colour)[-second:].mean()
    return [
        measured(GROUP, names[0], float(likeness), "SSIM", "higher"),
        measured(GROUP, names[1], float(distance), "levels", "lower"),
    ]


def flicker(survey: Survey) -> list[Metric]:
    """Measure whether brightness trembles from frame to frame.

    brightness flicker: root mean square of the second difference of the frame's mean grey, over
    sqrt(6) so that white noise of 1 level gives 1; levels, lower is better. pixel flicker: the same
    of each thumbnail pixel, median over the picture, which a moving head does not reach. Source: this
    project, after the temporal flickering of VBench (Huang et al. 2024).
    """
    names = ("brightness flicker", "pixel flicker")
    if survey.num_frames < 3:
        return [unavailable(FLICKER, name, "fewer than 3 frames") for name in names]
    means = survey.thumbs.mean(axis=(1, 2), dtype=np.float64)
    pixels = np.diff(survey.thumbs, n=2, axis=0)
    rms = np.sqrt((pixels**2).mean(axis=0, dtype=np.float64) / 6)
    whole = float(np.sqrt((np.diff(means, n=2) ** 2).mean() / 6))
    return [
        measured(FLICKER, names[0], whole, "levels", "lower"),
        measured(FLICKER, names[1], float(np.median(rms)), "levels", "lower"),
    ]
