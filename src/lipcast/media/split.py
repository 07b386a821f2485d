"""A long voice cut into pieces, each at the quietest place near where it was wished.

Input: a sound file. Output: WAV files (16 bit, the rate of the video's sound) that together hold every
sample once. Cuts lie between two blocks (0.48 s), so that a video of one piece has whole blocks.
Memory: one number per video frame.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipcast.config.models import VIDEO_FPS
from lipcast.errors import UsageError
from lipcast.media.audio import AudioFile, open_audio
from lipcast.media.resample import Samples
from lipcast.media.sound_parts import FileSource
from lipcast.media.target import explained

BLOCK_FRAMES = 12
"""Video frames of a block."""
_MOST_SEARCH_BLOCKS = 10
_FULL_SCALE = 32768


@dataclass(frozen=True, slots=True)
class Piece:
    """One written piece; frames are video frames of 40 ms."""

    path: Path
    first_frame: int
    num_frames: int
    num_samples: int


def cut_blocks(power_F: NDArray[np.float64], segment_blocks: int) -> list[int]:
    """Return where to cut a sound, in blocks: the first block of every piece but the first.

    power_F: mean square of the sound by video frame. A cut lies at most a quarter of a segment, and
    at most 10 blocks (4.8 s), from the wished place, where the two frames around it are quietest.
    """
    num_blocks = -(-len(power_F) // BLOCK_FRAMES)
    reach = min(_MOST_SEARCH_BLOCKS, segment_blocks // 4)
    cuts: list[int] = []
    wished = segment_blocks
    while wished + reach < num_blocks:
        near = sorted(range(wished - reach, wished + reach + 1), key=lambda b: abs(b - wished))
        cuts.append(min(near, key=lambda block: _loudness(power_F, block)))
        wished = cuts[-1] + segment_blocks
    return cuts


def _loudness(power_F: NDArray[np.float64], block: int) -> float:
    frame = block * BLOCK_FRAMES
    return float(power_F[frame - 1 : frame + 1].mean())


def split_audio(
    source: FileSource,
    folder: Path,
    *,
    segment_s: float,
    name: str,
    least_blocks: int = 1,
    overlap_blocks: int = 0,
) -> list[Piece]:
    """Write the pieces as `folder`/`name`-000.wav ...; returns them in order.

    segment_s: the wished length of a piece in seconds, at least one block. least_blocks: the last
    piece is added to the one before it if it is shorter. overlap_blocks: so much of the next piece, no
    longer than the shortest one, is also at the end of each.
    Raises UsageError, InputError for a sound that cannot be used, OutputError.
    """
    segment_blocks = round(segment_s * VIDEO_FPS / BLOCK_FRAMES)
    if segment_blocks < 1:
        least = BLOCK_FRAMES / VIDEO_FPS
        raise UsageError(f"segment: expected at least {least} s, got {segment_s:g}; give more")
    cuts = cut_blocks(_power_by_frame(open_audio(source)), segment_blocks)
    audio = open_audio(source)
    frames = -(-audio.num_samples * VIDEO_FPS // audio.sample_rate)
    last = frames - least_blocks * BLOCK_FRAMES
    borders = [0, *(c * BLOCK_FRAMES for c in cuts if c * BLOCK_FRAMES <= last), frames]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pieces = _write(audio, folder, name, borders)
        return _overlapped(pieces, overlap_blocks * BLOCK_FRAMES) if overlap_blocks else pieces
    except OSError as error:
        raise explained(folder, error) from error


def _overlapped(pieces: list[Piece], num_frames: int) -> list[Piece]:
    """Return the pieces, each but the last with the first frames of the next at its end."""
    longer = []
    for piece, following in pairwise(pieces):
        with wave.open(str(following.path), "rb") as file:
            parameters = file.getparams()
            count = parameters.framerate // VIDEO_FPS * num_frames
            first = file.readframes(count)
        with wave.open(str(piece.path), "rb") as file:
            own = file.readframes(piece.num_samples)
        temporary = piece.path.with_suffix(".part")
        with wave.open(str(temporary), "wb") as file:
            file.setparams(parameters._replace(nframes=0))
            file.writeframes(own + first)
        temporary.replace(piece.path)
        longer.append(Piece(
            piece.path, piece.first_frame, piece.num_frames + num_frames, piece.num_samples + count
        ))  # fmt: skip
    return [*longer, pieces[-1]]


def _power_by_frame(audio: AudioFile) -> NDArray[np.float64]:
    """Return the mean square of the sound over every video frame; the last may be shorter."""
    per_frame = audio.sample_rate // VIDEO_FPS
    found: list[float] = []
    for chunk in iter(audio.read, None):
        square_N = np.square(chunk.samples.astype(np.float64)).mean(axis=1)
        pieces = range(0, len(square_N), per_frame)
        found += [float(square_N[first : first + per_frame].mean()) for first in pieces]
    return np.array(found)


def _write(audio: AudioFile, folder: Path, name: str, borders: list[int]) -> list[Piece]:
    per_frame = audio.sample_rate // VIDEO_FPS
    blocks = (chunk.samples for chunk in iter(audio.read, None))
    held: Samples = np.zeros((0, audio.num_channels), np.float32)
    pieces = []
    for number, (first, end) in enumerate(pairwise(borders)):
        path = folder / f"{name}-{number:03d}.wav"
        wanted = min(end * per_frame, audio.num_samples) - first * per_frame
        temporary = path.with_suffix(".part")
        with wave.open(str(temporary), "wb") as file:
            file.setnchannels(audio.num_channels)
            file.setsampwidth(2)
            file.setframerate(audio.sample_rate)
            left = wanted
            for samples, rest in _up_to(held, blocks, wanted):
                file.writeframes(_pcm(samples))
                held, left = rest, left - len(samples)
        assert left == 0, "the scan counted the samples"
        temporary.replace(path)
        pieces.append(Piece(path, first, end - first, wanted))
    return pieces


def _up_to(
    held: Samples, blocks: Iterator[Samples], count: int
) -> Iterator[tuple[Samples, Samples]]:
    """Yield the next `count` samples in pieces, each with what is left over of its block."""
    while count:
        if not len(held):
            held = next(blocks)
        taken, held = held[:count], held[count:]
        count -= len(taken)
        yield taken, held


def _pcm(samples: Samples) -> bytes:
    scaled = np.rint(samples * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
    return scaled.astype("<i2").tobytes()
