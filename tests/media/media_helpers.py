"""Sounds and small videos, made with the library that reads them."""

from __future__ import annotations

import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lipcast.media.audio import AudioFile, PcmSource
from lipcast.media.resample import AudioChunk

EncodeSound = Callable[..., Path]


def drain(source: AudioFile | PcmSource) -> list[AudioChunk]:
    chunks = []
    while chunk := source.read():
        chunks.append(chunk)
    return chunks


def joined(source: AudioFile | PcmSource) -> tuple[np.ndarray, np.ndarray]:
    chunks = drain(source)
    return np.concatenate([c.samples for c in chunks]), np.concatenate([c.speech for c in chunks])


def tone(seconds: float, rate: int, *, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """[n, channels]: a sine of amplitude 0.3."""
    t = np.arange(round(seconds * rate)) / rate
    return np.repeat((0.3 * np.sin(2 * np.pi * hertz * t))[:, None], channels, axis=1)


def wav(samples: np.ndarray, path: Path) -> Path:
    """int16 samples as a 16 kHz mono wav."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, layout: str | None) -> None:
    """Write [n, channels] as the container that the suffix says."""
    layout = layout or {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        planar = np.ascontiguousarray(samples.T.astype(np.float32))
        frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def flashes(
    num_frames: int, rate: int, *, size: int = 64, period: int = 50, channels: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Frames that are white once a period, and sound that beeps in just these frames."""
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    frames[::period] = 255
    per_frame = rate // 25
    audio = np.zeros((num_frames * per_frame, channels), np.float32)
    beep = tone(1 / 25, rate, channels=channels, hertz=1000) * 2.5
    for first in range(0, num_frames, period):
        audio[first * per_frame : (first + 1) * per_frame] = beep
    return frames, audio


def offsets_ms(path: Path, from_s: float = 0) -> np.ndarray:
    """How much later each beep is heard than its flash is seen, by the container's clock."""
    with av.open(str(path)) as container:
        if from_s:
            container.seek(int(from_s * 1e6))
        light = [
            (float(f.pts * f.time_base), f.to_ndarray()[: f.height].mean() > 128)
            for f in container.decode(video=0)
        ]
    with av.open(str(path)) as container:
        if from_s:
            container.seek(int(from_s * 1e6))
        loud: list[float] = []
        for frame in container.decode(audio=0):
            start_s = float(frame.pts * frame.time_base)
            heard = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2) / frame.sample_rate
            loud.extend(start_s + heard)
    seen = [t for i, (t, on) in enumerate(light) if on and not (i and light[i - 1][1])]
    heard = [t for i, t in enumerate(loud) if i == 0 or t - loud[i - 1] > 0.2]
    assert len(seen) == len(heard) > 0
    return (np.array(heard) - np.array(seen)) * 1000


def numbered(num_frames: int, first: int = 0, size: int = 64) -> np.ndarray:
    """Frames that show their own number in binary, as 12 black and white fields."""
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    field = size // 4
    for i in range(num_frames):
        for bit in range(12):
            row, column = bit // 4 * field, bit % 4 * field
            shade = 235 if (first + i) >> bit & 1 else 20
            frames[i, row : row + field, column : column + field] = shade
    return frames


def number_of(frame: np.ndarray) -> int:
    """What `numbered` wrote."""
    field = frame.shape[0] // 4
    middle = field // 2
    centres = frame[middle::field, middle::field, 1][:3]
    return sum(int(value > 128) << bit for bit, value in enumerate(centres.ravel()))
