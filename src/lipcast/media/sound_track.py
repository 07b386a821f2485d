"""The sound of a video file being written: float samples in, AAC packets into a container.

Input: an open PyAV container, samples [channels, n] in order. Output: one continuous AAC stream.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from lipcast.media.resample import Samples


class SoundTrack:
    """One AAC stream of a container that is being written."""

    def __init__(self, container: Any, *, sample_rate: int, num_channels: int) -> None:
        """Add the stream; `sample_rate` in Hz, one that AAC has; `num_channels` 1 or 2."""
        self._container = container
        self._stream = container.add_stream("aac", rate=sample_rate)
        self._stream.layout = "mono" if num_channels == 1 else "stereo"
        self._stream.bit_rate = num_channels * aac_bit_rate(sample_rate)

    def encode(self, samples: Samples, position: int) -> None:
        """Encode [channels, n] that begin at sample `position`."""
        import av

        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.clip(-1, 1)),
            format="fltp",
            layout="mono" if len(samples) == 1 else "stereo",
        )
        frame.sample_rate = self._stream.codec_context.sample_rate
        frame.pts, frame.time_base = position, Fraction(1, frame.sample_rate)
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))


def aac_bit_rate(sample_rate: int) -> int:
    """Return bit/s per channel: 64k for speech rates, 96k at 48 kHz, never above the codec's limit."""
    return min(6 * sample_rate, max(64_000, 2 * sample_rate))
