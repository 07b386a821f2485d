"""What becomes of a longer video: whether its clips join, and whether it drifts.

Input: a loaded model, and a clip that it was not trained on, whose voice is repeated. Output: figures:

    join_48, join_32    change at the border of the first clip, where the reference is replaced, over the
                        change elsewhere, at windows of so many frames; 1 is best
    colour_drift        distance of the mean colours of the last second and of the first, levels
    likeness            SSIM of the mean pictures of the two, -1 to 1
    sharpness_kept      mean gradient of the last second over that of the first

The first second is that after the expression has come. What is measured is defined in `lipcast.lab`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lipcast.api import Lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS
from lipcast.lab.drift import drift
from lipcast.lab.footage import Footage, survey
from lipcast.lab.metric import Metric
from lipcast.lab.seams import seams
from lipcast.media.audio import AudioFile, open_audio
from lipcast.speech.sound import Sound, to_int16, wav_bytes
from lipcast_train.data.clips import Clip
from lipcast_train.data.procedural import FRAMES_PER_BLOCK

Figures = dict[str, float | None]
JOIN_WINDOWS = 48, 32
_BEGINNING = 2 * FRAMES_PER_BLOCK
"""Frames until the expression has come."""


def measure_long_video(model: Lipcast, clip: Clip, *, seconds: float) -> Figures:
    """Generate two clips at each window, and a video of `seconds`; return the figures."""
    figures: Figures = {}
    for window in JOIN_WINDOWS:
        figures[f"join_{window}"] = _join(model, clip, window)
    num_frames = round(seconds * VIDEO_FPS)
    return figures | drift_of(islice(_frames(model, clip, num_frames), _BEGINNING, None))


def drift_of(frames: Iterator[NDArray[np.uint8]]) -> Figures:
    """Compare the last second of a video with the first; it is read once."""
    gradients: list[float] = []

    def seen() -> Iterator[NDArray[np.uint8]]:
        for frame in frames:
            rows, columns = np.gradient(frame.mean(axis=-1))
            gradients.append(float(np.abs(rows).mean() + np.abs(columns).mean()))
            yield frame

    found = drift(survey(Footage("frames", VIDEO_FPS, seen)), None, fps=VIDEO_FPS)
    first, last = (float(np.mean(part)) for part in (gradients[:VIDEO_FPS], gradients[-VIDEO_FPS:]))
    return {
        "colour_drift": _value(found, "colour drift"),
        "likeness": _value(found, "likeness to the first second"),
        "sharpness_kept": last / first if first else None,
    }


def _join(model: Lipcast, clip: Clip, window: int) -> float | None:
    height, width, _ = clip.portrait_HWC.shape
    spec = model.spec(GenerateOptions(infer_frames=window), height=height, width=width)
    length = spec.geometry.swap_block * spec.video_frames_per_block
    footage = Footage.of_frames(_frames(model, clip, 2 * length, window=window))
    return _value(seams(survey(footage), {"block": FRAMES_PER_BLOCK, "clip": length}), "clip ratio")


def _frames(
    model: Lipcast, clip: Clip, num_frames: int, *, window: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a person who says the clip's words again and again."""
    wave_N = np.resize(clip.wave_N, num_frames * SAMPLE_RATE // VIDEO_FPS)
    session = model.stream(
        image=clip.portrait_HWC, audio=sound_of(wave_N), prompt=clip.prompt, infer_frames=window
    )
    with session as blocks:
        for block in blocks:
            yield from block.frames


def sound_of(wave_N: NDArray[np.float32]) -> AudioFile:
    """Return a voice as a sound that videos are made from."""
    return open_audio(wav_bytes([Sound(to_int16(wave_N), SAMPLE_RATE)]))


def _value(metrics: list[Metric], name: str) -> float | None:
    return next(metric.value for metric in metrics if metric.name == name)
