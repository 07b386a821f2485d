"""Pictures and pieces of sound as aiortc takes and gives them: PyAV's frames with their times."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CLOCK = 90_000


def picture_frame(picture_HWC: NDArray[np.uint8], time_s: Fraction) -> Any:
    """Return a picture [height, width, 3] that is shown at a time."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")
    frame.pts, frame.time_base = int(time_s * _CLOCK), Fraction(1, _CLOCK)
    return frame


def sound_frame(sound: NDArray[np.int16], *, sample_rate: int, first_sample: int) -> Any:
    """Return sound [samples, channels] that begins with the sample of a number."""
    import av

    layout = "mono" if sound.shape[1] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, first_sample
    frame.time_base = Fraction(1, sample_rate)
    return frame


def mono_of(frame: Any) -> NDArray[np.int16]:
    """Return the samples of a frame of 16-bit sound, its channels mixed."""
    samples: NDArray[np.int16] = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
    mono: NDArray[np.int16] = samples.mean(axis=1).astype(np.int16)
    return mono
