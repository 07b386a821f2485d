"""Videos one after the other in one file, the pictures copied and never encoded again.

Input: files of one size and one encoder setting, or a list of them in FFmpeg's concat format.
Output: one MP4, MOV or MKV, complete or not there at all, its timestamps checked by a demuxer.
The sound is one stream, encoded over the whole length: AAC frames of separate files overlap by
1024 samples and cannot be joined without a click. Memory does not grow with the length.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lipcast.config.text_file import read_text
from lipcast.errors import InputError, OutputError
from lipcast.media.audio import open_audio
from lipcast.media.decode import SoundDecoder, open_container
from lipcast.media.mp4 import metadata_of
from lipcast.media.resample import Fifo, Samples
from lipcast.media.sound_track import SoundTrack
from lipcast.media.target import check_target, container_of, explained, scratch_path

_EXPECTED = "expected a video file"
_MAX_CHANNELS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One file, as far as it must agree with the others. Lengths in pictures."""

    path: Path
    num_frames: int
    fps: Fraction
    picture: tuple[str, int, int, bytes]
    """Codec, width and height in pixels, and the decoder's settings."""
    sound: tuple[int, int] | None
    """Sample rate in Hz and number of channels; None where there is no sound."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Summary of a joined video."""

    path: Path
    parts: tuple[Part, ...]
    num_samples: int
    """Per channel; 0 without sound."""

    @property
    def num_frames(self) -> int:
        return sum(part.num_frames for part in self.parts)

    @property
    def duration_s(self) -> float:
        return float(self.num_frames / self.parts[0].fps)


def concat(paths: Sequence[Path], output: Path, *, sound: Path | None = None) -> Joined:
    """Write all videos into `output`; `sound`: the voice to use in place of the files' own.

    Raises InputError for files that do not fit together, OutputError where writing fails.
    """
    if not paths:
        raise InputError(f"{_EXPECTED} or more, got none; name them in order")
    if output.resolve() in {path.resolve() for path in paths}:
        raise OutputError(f"{output}: expected another file than the parts, got one of them")
    check_target(output)
    parts = tuple(look_at(path) for path in paths)
    check_alike(parts)
    temporary = scratch_path(output.resolve(), f".part{output.suffix}")
    try:
        with _Output(temporary, parts, _own_sound(parts) if sound is None else _voice(sound)) as to:
            to.copy()
        check_timestamps(temporary, sum(part.num_frames for part in parts))
        temporary.replace(output.resolve())
    except OSError as error:
        raise explained(output, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Joined(output, parts, to.num_samples)


def read_list(path: Path) -> list[Path]:
    """Return the files named in a list of FFmpeg's concat format: lines `file 'name'`, and comments."""
    found = []
    # Not splitlines(): a name may contain what Unicode calls a line break.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(path)), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            words = [line]
        if words[0] == "ffconcat":
            continue
        if len(words) != 2 or words[0] != "file":
            raise InputError(
                f"{path}:{number}: expected file 'NAME', got {line.strip()!r}; "
                "other directives are not followed, remove them"
            )
        found.append(path.parent / words[1])
    return found


def look_at(path: Path) -> Part:
    """Count the pictures of a file, without decoding one. Raises InputError."""
    with open_container(path, expected=_EXPECTED) as container:
        if not container.streams.video:
            raise InputError(f"{_EXPECTED}, got {path} without pictures; leave it out")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None or not stream.average_rate:
            raise InputError(f"{_EXPECTED}, got {path} without pictures that can be decoded")
        picture = (context.name, context.width, context.height, bytes(context.extradata or b""))
        sound = None
        voice = container.streams.audio and container.streams.audio[0].codec_context
        if voice:
            sound = voice.sample_rate, min(_MAX_CHANNELS, voice.channels)
        num_frames = sum(packet.size > 0 for packet in container.demux(stream))
        return Part(path, num_frames, Fraction(stream.average_rate), picture, sound)


def check_alike(parts: Sequence[Part]) -> None:
    """Raise InputError where the pictures or sounds of two files cannot follow one another."""
    first = parts[0]
    sounds = {part.sound for part in parts} - {None}
    for part in parts:
        if not part.num_frames:
            raise InputError(f"{_EXPECTED}, got {part.path} without any picture; leave it out")
        if (part.picture, part.fps) != (first.picture, first.fps):
            raise InputError(
                f"{part.path}: expected pictures as in {first.path} ({_describe(first)}), got "
                f"{_describe(part)}; make both with the same size and the same encoder settings"
            )
        if part.sound and len(sounds) > 1:
            raise InputError(
                f"{part.path}: expected one sample rate and number of channels in all files, got "
                f"{sorted(s for s in sounds if s)}; make them from one voice"
            )


def _describe(part: Part) -> str:
    codec, width, height, extra = part.picture
    return f"{codec} {width}x{height} at {float(part.fps):g}/s, {len(extra)} bytes of settings"


class _Voice:
    """Samples in order, pulled as far as they are wanted; silence after their end."""

    def __init__(self, blocks: Iterable[Samples], sample_rate: int, num_channels: int) -> None:
        self.sample_rate, self.num_channels = sample_rate, num_channels
        self._blocks = iter(blocks)
        self._held = Fifo(num_channels)

    def take(self, count: int) -> Samples:
        """Return the next `count` samples, [channels, count]."""
        while self._held.length < count and (block := next(self._blocks, None)) is not None:
            self._held.push(block)
        missing = max(0, count - self._held.length)
        self._held.push(np.zeros((self.num_channels, missing), np.float32))
        return self._held.pop(count)


def _voice(source: Path) -> _Voice:
    """Return the sound of one file, as `generate` would write it."""
    audio = open_audio(source)
    blocks = (np.ascontiguousarray(chunk.samples.T) for chunk in iter(audio.read, None))
    return _Voice(blocks, audio.sample_rate, audio.num_channels)


def _own_sound(parts: Sequence[Part]) -> _Voice | None:
    """Return the sounds of the files, each exactly as long as its pictures; None if none has one."""
    kind = next((part.sound for part in parts if part.sound), None)
    if kind is None:
        return None
    return _Voice(_fitted_sounds(parts, *kind), *kind)


def _fitted_sounds(parts: Sequence[Part], sample_rate: int, num_channels: int) -> Iterator[Samples]:
    frames = samples = 0
    for part in parts:
        frames += part.num_frames
        end = round(frames * sample_rate / part.fps)
        blocks = iter(()) if part.sound is None else _sound_of(part.path)
        voice = _Voice(blocks, sample_rate, num_channels)
        while samples < end:
            count = min(sample_rate, end - samples)
            yield voice.take(count)
            samples += count


def _sound_of(path: Path) -> Iterator[Samples]:
    """Yield [channels, n] blocks, from the moment of the first picture."""
    with open_container(path, expected=_EXPECTED) as container:
        stream = container.streams.video[0]
        first_s = float((stream.start_time or 0) * stream.time_base)
    decoder, early = SoundDecoder(path), None
    for block in decoder.blocks():
        stereo = decoder.to_stereo(block)
        if early is None:
            early = round((first_s - decoder.start_s) * decoder.rate)
            yield np.zeros((len(stereo), max(0, -early)), np.float32)
        cut = min(max(0, early), stereo.shape[1])
        early = max(0, early) - cut
        yield stereo[:, cut:]


class _Output:
    """The file that is written: packets copied, one sound."""

    def __init__(self, path: Path, parts: Sequence[Part], voice: _Voice | None) -> None:
        self._path, self._parts, self._voice = path, parts, voice
        self.num_samples = 0

    def __enter__(self) -> _Output:
        import av

        options = {} if container_of(self._path) == "matroska" else {"movflags": "faststart"}
        self._container: Any = av.open(
            f"file:{self._path}", "w", format=container_of(self._path), container_options=options
        )
        with open_container(self._parts[0].path, expected=_EXPECTED) as first:
            self._container.metadata.update(metadata_of(first))
            self._pictures = self._container.add_stream_from_template(first.streams.video[0])
        self._time_base = Fraction(self._pictures.time_base or Fraction(1, 12_800))
        self._track: SoundTrack | None = None
        if self._voice is not None:
            rate, channels = self._voice.sample_rate, self._voice.num_channels
            self._track = SoundTrack(self._container, sample_rate=rate, num_channels=channels)
        return self

    def __exit__(self, *_error: object) -> None:
        self._container.close()

    def copy(self) -> None:
        """Write every part and the sound."""
        num_frames = 0
        for part in self._parts:
            self._copy_part(part, num_frames)
            num_frames += part.num_frames
        if self._track is not None:
            self._track.finish()

    def _copy_part(self, part: Part, first_frame: int) -> None:
        """Copy the pictures of a file, the first shown as number `first_frame`."""
        with open_container(part.path, expected=_EXPECTED) as container:
            stream = container.streams.video[0]
            step = 1 / (part.fps * stream.time_base)
            shift = round(first_frame * step) - (stream.start_time or 0)
            packets = (packet for packet in container.demux(stream) if packet.size)
            for number, packet in enumerate(packets, first_frame + 1):
                self._speak(number / part.fps)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self._pictures
                self._container.mux(packet)

    def _speak(self, until_s: Fraction) -> None:
        """Encode the sound up to a time."""
        if self._voice is None or self._track is None:
            return
        count = round(until_s * self._voice.sample_rate) - self.num_samples
        self._track.encode(self._voice.take(count), self.num_samples)
        self.num_samples += count


def check_timestamps(path: Path, num_frames: int) -> None:
    """Demux a written file: pictures evenly spaced, all there, sound without a gap.

    Raises OutputError where one is not so.
    """
    times: dict[str, list[Fraction]] = {"video": [], "audio": []}
    longest: dict[str, Fraction] = {}
    with open_container(path, expected=_EXPECTED) as container:
        for packet in container.demux():
            if packet.size:
                times[packet.stream.type].append(packet.dts * packet.time_base)
                lasts = Fraction(packet.duration or 0) * packet.time_base
                longest[packet.stream.type] = max(longest.get(packet.stream.type, lasts), lasts)
    if len(times["video"]) != num_frames:
        raise OutputError(
            f"{path}: expected {num_frames} pictures, got {len(times['video'])}; "
            "the disk may be failing, write elsewhere"
        )
    for kind, moments in times.items():
        gaps = [after - before for before, after in pairwise(moments)]
        # Containers round times to 1 ms (Matroska) or to a sample.
        if any(not 0 < gap <= longest[kind] + Fraction(2, 1000) for gap in gaps):
            raise OutputError(
                f"{path}: expected {kind} packets one after the other, got a gap or a step back; "
                "the parts may be damaged, make them again"
            )
