"""PCM arithmetic: resampling, channel mapping, and one signal at two rates in step.

Input: float32 [channels, n] blocks at any rate, in any sizes. Output: float32 blocks whose total
length is ceil(n * to / from), the same whatever the sizes were; sample k of the output lies at
time k / rate of the input (no delay, silence assumed before and after).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import SAMPLE_RATE, VIDEO_FPS

Samples = NDArray[np.float32]

MUX_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""The rates that AAC knows and of which a video frame is a whole number of samples."""

# Against soxr's highest quality these settings differ by 2e-7 of the signal (the defaults: 2e-5).
_FILTER_TAPS = 64
_FILTER = {"filter_size": str(_FILTER_TAPS), "kaiser_beta": "12"}


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """One stretch of sound, twice. All chunks but the last last a whole number of video frames."""

    samples: Samples
    """[n, channels] at the source's `sample_rate`, for the muxer."""
    speech: Samples
    """[m] at 16 kHz: the mean of all channels."""


def mux_rate(native_rate: int) -> int:
    """Return the native rate where it can be muxed as it is, else 48 kHz."""
    return native_rate if native_rate in MUX_RATES else MUX_RATES[-1]


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Return ceil(n * to / from). Rounding up keeps ceil(duration * fps) equal at every rate."""
    return -(-num_samples * to_rate // from_rate)


def stereo_weights(channel_names: Sequence[str]) -> Samples:
    """Return [2, channels]: how speaker positions mix to stereo; the weights of each side sum to 1.

    Left and right stay on their side, the centre goes to both at -3 dB, the bass channel is
    dropped; unnamed channels go to both. Sums of 1 cannot clip.
    """
    weights: Samples = np.array([_sides(name) for name in channel_names], dtype=np.float32).T
    if (weights.sum(axis=1) == 0).any():
        weights = np.ones((2, len(channel_names)), dtype=np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def mean_of_channels(channels: Samples) -> Samples:
    """Return [1, n] from [channels, n]; five times as fast as `mean(axis=0)`."""
    if len(channels) == 1:
        return channels
    total = channels[:1] + channels[1:2]
    for channel in channels[2:]:
        total += channel
    total /= len(channels)
    return total


def _sides(name: str) -> tuple[float, float]:
    if name.startswith("LFE"):
        return 0.0, 0.0
    if name.endswith(("L", "LC")):
        return 1.0, 0.0
    if name.endswith(("R", "RC")):
        return 0.0, 1.0
    return 0.7071, 0.7071


class Resampler:
    """A stateful change of rate: `push` blocks, then `finish`."""

    def __init__(self, from_rate: int, to_rate: int, num_channels: int) -> None:
        self._from, self._to = from_rate, to_rate
        self._layout = "mono" if num_channels == 1 else "stereo"
        self._num_in = self._num_out = 0
        self._graph: Any = None
        if from_rate != to_rate:
            self._open()

    def push(self, block: Samples) -> Samples:
        """Resample [channels, n]; returns [channels, m], what is final by now."""
        self._num_in += block.shape[1]
        if self._graph is None:
            return block
        return self._emit(self._filter(block))

    def finish(self) -> Samples:
        """Return the rest. The total is ceil(n * to / from) samples."""
        channels = 1 if self._layout == "mono" else 2
        if self._graph is None:
            return np.zeros((channels, 0), np.float32)
        tail = np.zeros((channels, self._margin_in), np.float32)
        rest = np.concatenate([self._filter(tail), self._filter(None)], axis=1)
        self._graph = None
        missing = resampled_length(self._num_in, self._from, self._to) - self._num_out
        assert rest.shape[1] - self._skip >= missing
        return self._emit(rest)[:, :missing]

    def _open(self) -> None:
        import av

        graph = av.filter.Graph()
        source = graph.add(
            "abuffer",
            sample_rate=str(self._from),
            sample_fmt="fltp",
            channel_layout=self._layout,
            time_base=f"1/{self._from}",
        )
        change = graph.add("aresample", sample_rate=str(self._to), **_FILTER)
        sink = graph.add("abuffersink")
        source.link_to(change)
        change.link_to(sink)
        graph.configure()
        self._graph = graph
        self._skip = self._prime()

    def _prime(self) -> int:
        """Feed silence before the signal (the library would mirror it); returns outputs to skip.

        The silence is a whole number of samples at both rates and longer than the filter.
        """
        common = gcd(self._from, self._to)
        reach = _FILTER_TAPS * max(1, -(-self._from // self._to))
        units = -(-reach // (self._from // common))
        self._margin_in = units * (self._from // common)
        channels = 1 if self._layout == "mono" else 2
        num_early: int = self._filter(np.zeros((channels, self._margin_in), np.float32)).shape[1]
        return units * (self._to // common) - num_early

    def _filter(self, block: Samples | None) -> Samples:
        """Push a block (None: the end) and pull everything that comes out."""
        import av

        if block is not None and block.shape[1] == 0:
            return block
        self._graph.push(None if block is None else self._frame(block))
        pulled = [np.zeros((1 if self._layout == "mono" else 2, 0), np.float32)]
        while True:
            try:
                pulled.append(self._graph.pull().to_ndarray())
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(pulled, axis=1)

    def _frame(self, block: Samples) -> Any:
        import av

        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block), format="fltp", layout=self._layout
        )
        frame.sample_rate = self._from
        return frame

    def _emit(self, block: Samples) -> Samples:
        """Leave out what belongs to the silence in front."""
        skipped = min(self._skip, block.shape[1])
        self._skip -= skipped
        self._num_out += block.shape[1] - skipped
        return block[:, skipped:]


class Fifo:
    """Samples along the last axis, first in, first out."""

    def __init__(self, num_channels: int) -> None:
        self._blocks: deque[Samples] = deque()
        self._empty = np.zeros((num_channels, 0), np.float32)
        self.length = 0

    def push(self, block: Samples) -> None:
        if block.shape[1]:
            self._blocks.append(block)
            self.length += block.shape[1]

    def pop(self, num_samples: int) -> Samples:
        taken, missing = [self._empty], num_samples
        while missing:
            block = self._blocks.popleft()
            taken.append(block[:, :missing])
            if block.shape[1] > missing:
                self._blocks.appendleft(block[:, missing:])
            missing -= taken[-1].shape[1]
        self.length -= num_samples
        return np.concatenate(taken, axis=1)


class TwoTracks:
    """One native signal as chunks for the muxer and for the speech encoder, in step."""

    def __init__(
        self, native_rate: int, num_channels: int, *, sample_rate: int | None = None
    ) -> None:
        """`sample_rate` of the muxer's chunks; None: the native rate where it can be muxed."""
        self.sample_rate = sample_rate or mux_rate(native_rate)
        self._to_mux = Resampler(native_rate, self.sample_rate, num_channels)
        self._to_speech = Resampler(native_rate, SAMPLE_RATE, 1)
        self._mux, self._speech = Fifo(num_channels), Fifo(1)
        self.finished = False

    def push(self, channels: Samples, mono: Samples) -> None:
        """Take [channels, n] for the muxer and [1, n] for the speech encoder, at the native rate."""
        self._mux.push(self._to_mux.push(channels))
        self._speech.push(self._to_speech.push(mono))

    def finish(self) -> None:
        self._mux.push(self._to_mux.finish())
        self._speech.push(self._to_speech.finish())
        self.finished = True

    @property
    def num_frames(self) -> int:
        """Whole video frames that wait."""
        return min(
            self._mux.length * VIDEO_FPS // self.sample_rate,
            self._speech.length * VIDEO_FPS // SAMPLE_RATE,
        )

    def take(self, most_frames: int) -> AudioChunk | None:
        """Return the next chunk of at most `most_frames` video frames; None where nothing waits."""
        num_frames = min(self.num_frames, most_frames)
        if self.finished and num_frames == self.num_frames < most_frames:
            return self._take(self._mux.length, self._speech.length)
        per_frame = self.sample_rate // VIDEO_FPS, SAMPLE_RATE // VIDEO_FPS
        return self._take(num_frames * per_frame[0], num_frames * per_frame[1])

    def _take(self, num_mux: int, num_speech: int) -> AudioChunk | None:
        if num_mux == num_speech == 0:
            return None
        samples = np.ascontiguousarray(self._mux.pop(num_mux).T)
        return AudioChunk(samples=samples, speech=self._speech.pop(num_speech)[0])
