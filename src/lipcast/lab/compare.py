"""One run against another, frame by frame.

Input: two videos of one size. Output: metrics and the curves behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipcast.errors import InputError
from lipcast.lab.footage import Footage
from lipcast.lab.metric import Metric, measured
from lipcast.lab.pictures import grey, psnr, ssim

GROUP = "against the other"
EQUAL_DB = 100.0
"""Value that stands for the infinite PSNR of equal frames, dB."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metrics, and per frame PSNR (dB) and SSIM."""

    metrics: list[Metric]
    psnr_curve: list[float]
    ssim_curve: list[float]


def compare(video: Footage, other: Footage) -> Comparison:
    """Return how near two runs are, over the frames that both have.

    PSNR: peak signal to noise over RGB, dB, higher is nearer, 100 stands for equal; the mean over
    frames and the worst frame. SSIM: on grey at full size, -1..1, 1 is equal (Wang et al. 2004).
    length: frames that the other has more; 0 is best. Raises InputError where the sizes differ.
    """
    decibels, structures = [], []
    frames, others = video.open(), other.open()
    while True:
        a, b = next(frames, None), next(others, None)
        if a is None or b is None:
            break
        if a.shape != b.shape:
            raise InputError(
                f"expected two videos of one size, got {a.shape[1]}x{a.shape[0]} and "
                f"{b.shape[1]}x{b.shape[0]}; make the other one at the same --size"
            )
        decibels.append(min(psnr(a, b), EQUAL_DB))
        structures.append(ssim(grey(a), grey(b)))
    extra = sum(1 for _ in others) + (b is not None) - sum(1 for _ in frames) - (a is not None)
    if not decibels:
        raise InputError(f"expected two videos with pictures, got {video.name} and {other.name}")
    worst = int(np.argmin(decibels))
    metrics = [
        measured(GROUP, "PSNR", float(np.mean(decibels)), "dB", "higher"),
        measured(GROUP, "worst PSNR", decibels[worst], "dB", "higher", note=f"at frame {worst}"),
        measured(GROUP, "SSIM", float(np.mean(structures)), "", "higher"),
        measured(GROUP, "length", extra, "frames", "zero", note="that the other has more"),
    ]
    return Comparison(metrics, decibels, structures)
