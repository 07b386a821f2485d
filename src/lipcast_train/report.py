"""How well a model does on clips whose truth is known, and whether another one does better.

Input: a model, and clips that it was not trained on. Output: a report, as plain data: per clip and on average

    lip_sync      correlation of the mouth's opening with the track that drew it; -1 to 1, higher is better
    still_psnr    PSNR of the pixels that stand still in the clip, dB; higher is better
    sharpness     correlation of the spatial gradients of the eyes with the clip's; -1 to 1, higher is better

The opening is read from the pixels of the mouth by a linear reader (ridge regression) that was fitted to the
frames of the true clip, so it knows the face and nothing of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lipcast
from lipcast.config.models import SAMPLE_RATE
from lipcast.speech.sound import Sound, to_int16, wav_bytes
from lipcast_train.data.clips import Clip

Floats = NDArray[np.float64]
_RIDGE = 0.05
"""Strength of the reader's regularisation, of the mean squared length of its inputs."""
_STILL = 2.0
"""Standard deviation over time, in grey levels, below which a pixel stands still."""
TOLERANCES = {"lip_sync": 0.01, "still_psnr": 0.3, "sharpness": 0.01}
"""Differences of averages that are no difference."""


@dataclass(frozen=True, slots=True)
class ClipReport:
    """What was measured on one clip; None where the clip has no such truth."""

    clip: int
    lip_sync: float | None
    still_psnr: float | None
    sharpness: float | None


def measure_model(model: str | Path, clips: Iterable[tuple[int, Clip]]) -> dict[str, Any]:
    """Generate every clip's video from its portrait, voice and prompt; return the report."""
    loaded = lipcast.load(str(model), device="cpu", precision="fp32")
    rows = []
    for index, clip in clips:
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "voice.wav"
            sound.write_bytes(voice_file(clip))
            video = loaded.generate(image=clip.portrait_HWC, audio=sound, prompt=clip.prompt)
        rows.append(measure_clip(index, clip, np.asarray(video.frames)))
    return report_of(str(model), rows)


def voice_file(clip: Clip) -> bytes:
    """Return the voice of a clip as a WAV file."""
    return wav_bytes([Sound(to_int16(clip.wave_N), SAMPLE_RATE)])


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
    for name in TOLERANCES:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        averages[name] = float(np.mean(values)) if values else None
    return {"model": model, "average": averages, "clips": [asdict(row) for row in rows]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether new weights replace the old ones, and why (not)."""

    is_better: bool
    reasons: tuple[str, ...]


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> Verdict:
    """Return whether `new` is worse nowhere and better somewhere, beyond the tolerances."""
    better, worse = [], []
    for name, tolerance in TOLERANCES.items():
        before, after = old["average"].get(name), new["average"].get(name)
        if before is None:
            continue
        if after is None:
            worse.append(f"{name}: {before:.3f} before, not measured now")
            continue
        line = f"{name}: {before:.3f} before, {after:.3f} now"
        if after < before - tolerance:
            worse.append(line)
        elif after > before + tolerance:
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
