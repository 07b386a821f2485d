"""How well a model does on clips whose truth is known, and whether another one does better.

Input: a model, and clips that it was not trained on. Output: a report, as plain data: per clip and on
average, and of a longer video where that is asked for (see `lipcast_train.long_video`):

    lip_sync      correlation of the mouth's opening with the track that drew it; -1 to 1, higher is better
    still_psnr    PSNR of the pixels that stand still in the clip, dB; higher is better
    sharpness     correlation of the spatial gradients of the eyes with the clip's; -1 to 1, higher is better

The opening is read from the pixels of the mouth by a linear reader (ridge regression) that was fitted to the
frames of the true clip, so it knows the face and nothing of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lipcast
from lipcast_train.data.clips import Clip
from lipcast_train.long_video import measure_long_video, sound_of

Floats = NDArray[np.float64]
_RIDGE = 0.05
"""Strength of the reader's regularisation, of the mean squared length of its inputs."""
_STILL = 2.0
"""Standard deviation over time, in grey levels, below which a pixel stands still."""


@dataclass(frozen=True, slots=True)
class Gate:
    """How one figure of a report is judged."""

    words: str
    tolerance: float
    """A difference that is no difference."""
    aim: float | None = None
    is_lower_better: bool = False

    def passes(self, value: float | None) -> bool:
        """Return whether a figure reaches the aim."""
        if value is None or self.aim is None:
            return self.aim is None
        return value <= self.aim if self.is_lower_better else value >= self.aim


CLIP_GATES = {
    "lip_sync": Gate("lip sync (correlation)", 0.01, aim=0.92),
    "still_psnr": Gate("still pixels (dB)", 0.3),
    "sharpness": Gate("sharpness of the eyes (correlation)", 0.01),
}
GATES = CLIP_GATES | {
    "join_48": Gate("join at a window of 48 (ratio)", 0.05, aim=1.3, is_lower_better=True),
    "join_32": Gate("join at a window of 32 (ratio)", 0.05, aim=1.3, is_lower_better=True),
    "colour_drift": Gate("drift of the colours (levels)", 0.5, is_lower_better=True),
    "likeness": Gate("likeness to the first second (SSIM)", 0.01),
    "sharpness_kept": Gate("sharpness kept (ratio)", 0.02),
}
"""Those of single clips, and those of a longer video, which not every report has."""


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What was measured on one clip; None where the clip has no such truth."""

    clip: int
    lip_sync: float | None
    still_psnr: float | None
    sharpness: float | None


def measure_model(
    model: str | Path, clips: Sequence[tuple[int, Clip]], *, long_s: float | None = None
) -> dict[str, Any]:
    """Generate every clip's video from its portrait, voice and prompt; return the report.

    `long_s`: also generate the first one's as long as that, in seconds, and measure joins and drift.
    """
    loaded = lipcast.load(str(model), device="cpu", precision="fp32")
    rows = []
    for index, clip in clips:
        video = loaded.generate(
            image=clip.portrait_HWC, audio=sound_of(clip.wave_N), prompt=clip.prompt
        )
        rows.append(measure_clip(index, clip, np.asarray(video.frames)))
    report = report_of(str(model), rows)
    if long_s is not None:
        report["average"] |= measure_long_video(loaded, clips[0][1], seconds=long_s)
    return report


def measure_clip(index: int, clip: Clip, made_THWC: NDArray[np.uint8]) -> ClipReport:
    """Compare a video with the clip that it should be."""
    count = min(len(made_THWC), len(clip.frames_THWC))
    made, true = made_THWC[:count].astype(np.float64), clip.frames_THWC[:count].astype(np.float64)
    boxes = clip.face_boxes
    opening = None if clip.mouth is None else clip.mouth.opening_T[:count].astype(np.float64)
    sync = None
    if opening is not None and "mouth" in boxes:
        sync = _lip_sync(_cut(true, boxes["mouth"]), _cut(made, boxes["mouth"]), opening)
    sharp = None
    if "eyes" in boxes:
        sharp = _sharpness(_cut(true, boxes["eyes"]), _cut(made, boxes["eyes"]))
    return ClipReport(index, sync, _still_psnr(true, made), sharp)


def report_of(model: str, rows: Sequence[ClipReport]) -> dict[str, Any]:
    """Return rows and their averages as plain data."""
    averages = {}
    for name in CLIP_GATES:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        averages[name] = float(np.mean(values)) if values else None
    return {"model": model, "average": averages, "clips": [asdict(row) for row in rows]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether new weights replace the old ones, and why (not)."""

    is_better: bool
    reasons: tuple[str, ...]


def table_of(report: Mapping[str, Any]) -> list[str]:
    """Return the averages of a report and whether they reach their aims, as a Markdown table."""
    lines = ["| gate | aim | figure | |", "| --- | --- | --- | --- |"]
    for name, value in report["average"].items():
        gate, sign = GATES[name], "≤" if GATES[name].is_lower_better else "≥"
        aim = "" if gate.aim is None else f"{sign} {gate.aim:g}"
        found = "not measured" if value is None else f"{value:.3f}"
        word = "" if gate.aim is None else ("reached" if gate.passes(value) else "missed")
        lines.append(f"| {gate.words} | {aim} | {found} | {word} |")
    return lines


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> Verdict:
    """Return whether `new` is worse nowhere and better somewhere, beyond the tolerances."""
    better, worse = [], []
    for name, gate in GATES.items():
        before, after = old["average"].get(name), new["average"].get(name)
        if before is None:
            continue
        if after is None:
            worse.append(f"{name}: {before:.3f} before, not measured now")
            continue
        line = f"{name}: {before:.3f} before, {after:.3f} now"
        gain = before - after if gate.is_lower_better else after - before
        if gain < -gate.tolerance:
            worse.append(line)
        elif gain > gate.tolerance:
            better.append(line)
    reasons = worse or better or ["no difference beyond the tolerances"]
    return Verdict(bool(better) and not worse, tuple(reasons))


def _lip_sync(true: Floats, made: Floats, opening: Floats) -> float | None:
    """Return the correlation of the opening that is read from the video with the true one."""
    pixels, middle = true.reshape(len(true), -1), true.reshape(len(true), -1).mean(0)
    pixels = pixels - middle
    products = pixels @ pixels.T
    strength = _RIDGE * np.trace(products) / len(products) + 1e-9
    answers = np.linalg.solve(products + strength * np.eye(len(products)), opening - opening.mean())
    read = (made.reshape(len(made), -1) - middle) @ (pixels.T @ answers)
    return _correlation(read, opening)


def _still_psnr(true: Floats, made: Floats) -> float | None:
    still = true.std(axis=0).max(axis=-1) < _STILL
    if not still.any():
        return None
    error = float(np.square(made[:, still] - true[:, still]).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _sharpness(true: Floats, made: Floats) -> float | None:
    edges = [
        np.concatenate([d.ravel() for d in np.gradient(x.mean(-1), axis=(1, 2))])
        for x in (true, made)
    ]
    return _correlation(*edges)


def _cut(frames: Floats, box: tuple[int, int, int, int]) -> Floats:
    x, y, width, height = box
    return frames[:, y : y + height, x : x + width]


def _correlation(a: Floats, b: Floats) -> float | None:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return None
    return float(np.corrcoef(a, b)[0, 1])
